//! Which web pages may connect (client protocol §1.1).

use hyper::HeaderMap;
use hyper::header::ORIGIN;

/// Decides by the `Origin` header: browsers send it, native apps do not.
///
/// `*` allows every origin; another pattern may hold `*` for any characters but `/`, so that
/// `https://*.example.com` does not match `https://evil.test/.example.com`.
pub(crate) fn is_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    let mut origins = headers.get_all(ORIGIN).iter();
    match (origins.next(), origins.next()) {
        (None, _) => true,
        (Some(origin), None) => origin
            .to_str()
            .is_ok_and(|origin| allowed.iter().any(|pattern| matches(pattern, origin))),
        // Two origins are a forgery.
        _ => false,
    }
}

fn matches(pattern: &str, origin: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    let pattern = pattern.to_ascii_lowercase();
    let origin = origin.to_ascii_lowercase();
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == origin;
    };
    let between = origin
        .strip_prefix(head)
        .and_then(|rest| rest.strip_suffix(tail));
    between.is_some_and(|between| !between.is_empty() && !between.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(patterns: &[&str], origin: &str) -> bool {
        let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
        let mut headers = HeaderMap::new();
        headers.insert(ORIGIN, origin.parse().unwrap());
        is_allowed(&headers, &patterns)
    }

    #[test]
    fn native_apps_send_no_origin() {
        assert!(is_allowed(&HeaderMap::new(), &[]));
    }

    #[test]
    fn browsers_need_a_pattern() {
        let chat = ["https://chat.example.com"];
        assert!(allowed(&chat, "https://chat.example.com"));
        assert!(allowed(&chat, "https://CHAT.example.com"));
        for bad in [
            "null",
            "http://chat.example.com",
            "https://chat.example.com:8443",
            "https://chat.example.com.evil.test",
            "https://evil-chat.example.com",
            "https://chat.example.com.",
        ] {
            assert!(!allowed(&chat, bad), "{bad}");
        }
        assert!(!allowed(&[], "https://chat.example.com"));
        assert!(allowed(&["*"], "https://any.test"));
    }

    #[test]
    fn a_star_stands_for_a_part_of_the_host() {
        let sub = ["https://*.example.com"];
        assert!(allowed(&sub, "https://a.example.com"));
        assert!(!allowed(&sub, "https://example.com"));
        assert!(!allowed(&sub, "https://.example.com"));
        assert!(!allowed(&sub, "https://evil.test/.example.com"));
        assert!(!allowed(&sub, "https://a.example.com.evil.test"));
    }

    #[test]
    fn two_origins_are_refused() {
        let mut headers = HeaderMap::new();
        headers.append(ORIGIN, "https://a.test".parse().unwrap());
        headers.append(ORIGIN, "https://b.test".parse().unwrap());
        assert!(!is_allowed(&headers, &["*".to_owned()]));
    }
}
