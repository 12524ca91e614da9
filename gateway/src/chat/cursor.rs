//! Cursors: where a list goes on. Clients get them as they are and send them back.
//!
//! A cursor names the last item that was listed, not a number of items: what comes or goes
//! meanwhile makes no item appear twice or go missing.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::error::ChatError;

/// Items of one page when the request does not say, and at most.
const LIMIT: u32 = 50;
const LIMIT_MAX: u32 = 200;

/// Where a page begins, and how long it is.
#[derive(Debug)]
pub(super) struct Page {
    /// The last item of the page before; empty: from the start.
    pub(super) after: String,
    /// One more than the page has: whether there is a next one.
    limit: u32,
}

impl Page {
    /// Reads a request's `cursor` and `limit`.
    ///
    /// # Errors
    /// [`ChatError::Invalid`] for a cursor that no list gave.
    pub(super) fn of(cursor: &str, limit: Option<u32>) -> Result<Self, ChatError> {
        let bytes = URL_SAFE_NO_PAD.decode(cursor).ok();
        let after = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        let after = after.filter(|after| !after.contains('\0'));
        Ok(Self {
            after: after.ok_or_else(|| {
                ChatError::Invalid("cursor: send back what the last page named".to_owned())
            })?,
            limit: limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX),
        })
    }

    /// Returns how many items to ask for.
    pub(super) fn ask(&self) -> u32 {
        self.limit + 1
    }

    /// Cuts what was found to the page, and makes the next page's cursor.
    pub(super) fn cut<T>(
        &self,
        mut found: Vec<T>,
        key: impl Fn(&T) -> &str,
    ) -> (Vec<T>, Option<String>) {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let has_more = found.len() > limit;
        found.truncate(limit);
        let last = found.last().filter(|_| has_more);
        let cursor = last.map(|last| URL_SAFE_NO_PAD.encode(key(last)));
        (found, cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_goes_on_behind_its_last_item() {
        let page = Page::of("", Some(2)).unwrap();
        assert_eq!(page.ask(), 3);
        let (items, cursor) = page.cut(vec!["a", "b", "c"], |item| item);
        assert_eq!(items, ["a", "b"]);
        let page = Page::of(&cursor.unwrap(), Some(2)).unwrap();
        assert_eq!(page.after, "b");
        assert_eq!(page.cut(vec!["c"], |item| item), (vec!["c"], None));
        assert!(Page::of("?", None).is_err());
        assert_eq!(Page::of("", Some(100_000)).unwrap().ask(), LIMIT_MAX + 1);
    }
}
