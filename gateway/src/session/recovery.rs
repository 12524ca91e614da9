//! What a returning client is given: exactly what it missed, or the plain word that it is gone.

use std::sync::Arc;

use shared::ids::StreamPosition;
use shared::protocol::Publication;

use crate::broker::HistoryPage;

/// What a recovery comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Recovery {
    /// True when `publications` is everything the client missed.
    pub(crate) recovered: bool,
    /// What it missed; empty when not recovered.
    pub(crate) publications: Vec<Arc<Publication>>,
    /// Where the client stands before it applies `publications`.
    pub(crate) offset: u64,
}

/// Decides a recovery (client protocol §8.1) from the history after the client's position.
///
/// `page` holds the publications above `since.offset`, oldest first, as many as one recovery
/// may have plus nothing else, and the stream's top. An empty epoch matches any, except on
/// durable channels: there a position without an epoch says nothing once it is above 0.
pub(crate) fn decide(since: &StreamPosition, page: HistoryPage, is_durable: bool) -> Recovery {
    let is_unnamed = since.epoch.as_str().is_empty();
    let is_same_stream =
        since.epoch == page.top.epoch || (is_unnamed && (!is_durable || since.offset == 0));
    let is_complete = match (page.publications.first(), page.publications.last()) {
        (Some(first), Some(last)) => {
            first.offset == since.offset + 1 && last.offset == page.top.offset
        }
        // Nothing is kept: complete only for a client that is at the top.
        _ => page.top.offset == since.offset,
    };
    if is_same_stream && is_complete {
        return Recovery {
            recovered: true,
            publications: page.publications,
            offset: since.offset,
        };
    }
    Recovery {
        recovered: false,
        publications: Vec::new(),
        offset: page.top.offset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::ops::RangeInclusive;

    fn page(kept: RangeInclusive<u64>, top: u64) -> HistoryPage {
        let publication = |offset| {
            Arc::new(Publication {
                offset,
                data: Bytes::from_static(b"{}"),
                info: None,
                tags: std::collections::BTreeMap::new(),
                id: None,
                published_at_ms: 0,
            })
        };
        HistoryPage {
            publications: kept.map(publication).collect(),
            top: StreamPosition {
                offset: top,
                epoch: "e".into(),
            },
        }
    }

    fn empty_page(top: u64) -> HistoryPage {
        HistoryPage {
            publications: Vec::new(),
            ..page(1..=1, top)
        }
    }

    fn recover(offset: u64, epoch: &str, page: HistoryPage) -> (bool, usize, u64) {
        let since = StreamPosition {
            offset,
            epoch: epoch.into(),
        };
        let recovery = decide(&since, page, false);
        (
            recovery.recovered,
            recovery.publications.len(),
            recovery.offset,
        )
    }

    #[test]
    fn golden_cases() {
        assert_eq!(recover(0, "e", page(1..=2, 2)), (true, 2, 0));
        assert_eq!(recover(0, "", page(1..=2, 2)), (true, 2, 0));
        assert_eq!(recover(2, "e", empty_page(2)), (true, 0, 2));
        assert_eq!(recover(9, "e", empty_page(2)), (false, 0, 2));
        assert_eq!(recover(1, "other", page(2..=2, 2)), (false, 0, 2));
        assert_eq!(recover(1, "e", page(3..=5, 5)), (false, 0, 5));
        assert_eq!(recover(2, "e", page(3..=5, 5)), (true, 3, 2));
        assert_eq!(recover(0, "e", page(1..=300, 301)), (false, 0, 301));
    }

    #[test]
    fn a_durable_position_needs_its_epoch() {
        let since = StreamPosition {
            offset: 1,
            epoch: "".into(),
        };
        assert!(!decide(&since, page(2..=2, 2), true).recovered);
        assert!(decide(&since, page(2..=2, 2), false).recovered);
    }

    proptest! {
        /// Against the plain model: recovered exactly when client + publications = everything.
        #[test]
        fn recovered_means_nothing_is_missing(
            since in 0u64..20, first_kept in 1u64..20, top in 0u64..20, limit in 1u64..20)
        {
            let from = first_kept.max(since + 1);
            let to = top.min(from.saturating_add(limit).saturating_sub(1));
            let kept = page(from..=to, top);
            let (recovered, count, _) = recover(since, "e", kept);
            let missed: Vec<u64> = (since + 1..=top).collect();
            let given: Vec<u64> = (from..=to).collect();
            prop_assert_eq!(recovered, since <= top && missed == given);
            prop_assert_eq!(count, if recovered { given.len() } else { 0 });
        }
    }
}
