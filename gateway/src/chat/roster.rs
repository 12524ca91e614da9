//! What backends do with members by the server API: nobody is asked, the namespace's `join`
//! option does not matter.

use shared::ids::{ChannelName, UserId};
use store::records::{Added, ChannelKind, NewChannel, NewMember, Role};

use super::error::ChatError;
use super::{Chat, now_ms, validate};

/// Users of one call.
const USERS_MAX: usize = 1_000;

impl Chat {
    /// Makes users members, and the channel when it is not there; counts those that are new.
    ///
    /// # Errors
    /// See [`ChatError`]; users before the one that failed are members.
    pub(crate) async fn members_add(
        &self,
        channel: &str,
        users: &[String],
        role: Role,
    ) -> Result<usize, ChatError> {
        let (channel, namespace) = self.with_members(channel)?;
        let users = checked(users)?;
        let records = self.records()?;
        let now_ms = now_ms();
        let new = NewChannel {
            channel: &channel,
            kind: ChannelKind::Group,
            name: "",
            picture: "",
            created_by: "",
            now_ms,
        };
        records.create_channel(&new, &[], self.limits()).await?;
        let joined_offset = self.top_offset(&channel, &namespace).await?;
        let mut new = 0;
        for user in &users {
            let member = NewMember {
                user,
                role,
                joined_offset,
                now_ms,
            };
            let added = records.add_member(&channel, &member, self.limits()).await?;
            new += usize::from(added == Added::New);
        }
        Ok(new)
    }

    /// Ends users' memberships, and takes them off the channel on every node.
    ///
    /// # Errors
    /// See [`ChatError`]; asked again, it goes on where it failed.
    pub(crate) async fn members_remove(
        &self,
        channel: &str,
        users: &[String],
    ) -> Result<(), ChatError> {
        let (channel, _) = self.with_members(channel)?;
        for user in checked(users)? {
            self.remove(&channel, &user).await?;
        }
        Ok(())
    }

    /// Gives a member a role.
    ///
    /// # Errors
    /// See [`ChatError`].
    pub(crate) async fn members_set_role(
        &self,
        channel: &str,
        user: &str,
        role: Role,
    ) -> Result<(), ChatError> {
        let (channel, _): (ChannelName, _) = self.with_members(channel)?;
        let user = validate::user("user", user)?;
        self.set_role(&channel, &user, role).await
    }
}

fn checked(users: &[String]) -> Result<Vec<UserId>, ChatError> {
    validate::require((1..=USERS_MAX).contains(&users.len()), || {
        format!("users: 1 to {USERS_MAX}")
    })?;
    users
        .iter()
        .map(|user| validate::user("users", user))
        .collect()
}
