//! Which of a channel's oldest rows have passed their time.

/// What one step of a channel's retention came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expired {
    /// Rows that are gone.
    pub rows: usize,
    /// True when no older row is left: the channel is done for now.
    pub is_done: bool,
}

/// The rows to go: the first ones in the order of offsets, as far as all are old.
///
/// Rows go from the front only, so that one floor says everything about what is missing.
pub(super) struct Old {
    pub(super) rows: usize,
    pub(super) top: Option<i64>,
    pub(super) is_done: bool,
}

impl Old {
    /// Looks at the oldest rows, `(offset, published_at_ms)` in the order of offsets.
    pub(super) fn of(oldest: &[(i64, i64)], before_ms: i64, limit: usize) -> Self {
        let old = oldest.iter().take_while(|(_, at)| *at < before_ms);
        let rows = old.clone().count();
        Self {
            rows,
            top: old.last().map(|(offset, _)| *offset),
            is_done: rows < limit,
        }
    }

    pub(super) fn expired(&self) -> Expired {
        Expired {
            rows: self.rows,
            is_done: self.is_done,
        }
    }
}
