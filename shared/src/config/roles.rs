//! What a worker process does: a set of roles.

/// One role of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerRole {
    /// Publications into the archive.
    Persist,
    /// Pushes to people who are away.
    Push,
    /// Uploaded media into their final form.
    Upload,
}

impl WorkerRole {
    /// Every role.
    pub const ALL: &[Self] = &[Self::Persist, Self::Push, Self::Upload];

    /// Returns its name: on the command line, in logs, a label of metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Persist => "persist",
            Self::Push => "push",
            Self::Upload => "upload",
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::Persist => 1,
            Self::Push => 2,
            Self::Upload => 4,
        }
    }
}

/// The roles that a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerRoles(u8);

impl WorkerRoles {
    /// Every role.
    pub const ALL: Self = Self(u8::MAX);

    /// Reads names; none means all.
    ///
    /// # Errors
    /// In plain words, for a name that is no role.
    pub fn parse(names: &[String]) -> Result<Self, String> {
        let mut roles = Self(0);
        for name in names {
            let role = WorkerRole::ALL.iter().find(|role| role.name() == name);
            let Some(role) = role else {
                let known: Vec<_> = WorkerRole::ALL.iter().map(|role| role.name()).collect();
                return Err(format!(
                    "{name:?} is no role of this version; it has `{}`",
                    known.join("`, `")
                ));
            };
            roles.0 |= role.bit();
        }
        Ok(if names.is_empty() { Self::ALL } else { roles })
    }

    /// True when the role is among them.
    pub fn has(self, role: WorkerRole) -> bool {
        self.0 & role.bit() != 0
    }

    /// Lists them.
    pub fn iter(self) -> impl Iterator<Item = WorkerRole> {
        WorkerRole::ALL
            .iter()
            .copied()
            .filter(move |role| self.has(*role))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_make_a_set() {
        let parse = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            WorkerRoles::parse(&names)
        };
        assert_eq!(parse(&[]), Ok(WorkerRoles::ALL));
        for role in WorkerRole::ALL {
            let roles = parse(&[role.name(), role.name()]).unwrap();
            assert_eq!(roles.iter().collect::<Vec<_>>(), [*role]);
            assert!(WorkerRoles::ALL.has(*role));
        }
        assert!(parse(&["persit"]).unwrap_err().contains("`persist`"));
    }
}
