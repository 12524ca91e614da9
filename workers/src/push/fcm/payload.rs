//! A push as FCM's JSON: never above what it carries, one block for each platform.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::super::provider::{Notification, Push};

/// What FCM carries; we count all of the message, which is more than it does.
pub(super) const PAYLOAD_BYTES_MAX: usize = 4096;
/// Longest `apns-collapse-id`.
const COLLAPSE_ID_BYTES_MAX: usize = 64;
/// Longest time that FCM keeps a push, in seconds.
const TTL_MAX_S: u64 = 2_419_200;
const CUT: &str = "…";

/// Makes the request's body; the notification's body is shortened to what fits.
///
/// # Errors
/// In plain words, when it cannot be made to fit or uses names that FCM keeps for itself.
pub(super) fn body(push: &Push, now_s: u64) -> Result<Vec<u8>, String> {
    if let Some(name) = push.data.keys().find(|name| is_reserved(name)) {
        return Err(format!("data.{name}: FCM keeps this name for itself"));
    }
    let mut notification = push.notification.clone();
    loop {
        let message = message(push, notification.as_ref(), now_s);
        let text = message.to_string();
        let Some(excess) = text.len().checked_sub(PAYLOAD_BYTES_MAX + 1) else {
            return Ok(json!({ "message": message }).to_string().into_bytes());
        };
        let is_cut = notification
            .as_mut()
            .is_some_and(|shown| shorten(&mut shown.body, excess + 1));
        if !is_cut {
            return Err(format!(
                "{} bytes are more than the {PAYLOAD_BYTES_MAX} that FCM carries",
                text.len()
            ));
        }
    }
}

/// Returns true for the keys of `data` that FCM refuses.
fn is_reserved(name: &str) -> bool {
    matches!(name, "from" | "message_type") || name.starts_with("gcm") || name.starts_with("google")
}

/// Takes so many bytes of JSON from the end, in whole characters; false when there is nothing to
/// take.
fn shorten(text: &mut String, bytes: usize) -> bool {
    let was_cut = text.ends_with(CUT);
    if was_cut {
        text.truncate(text.len() - CUT.len());
    }
    // The mark needs room as well.
    let mark = if was_cut { 0 } else { CUT.len() };
    let mut taken = 0;
    while taken < bytes + mark {
        let Some(last) = text.pop() else {
            break;
        };
        taken += json_bytes(last);
    }
    text.push_str(CUT);
    taken > 0
}

/// Returns how long a character is inside a JSON text.
fn json_bytes(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        other => other.len_utf8(),
    }
}

fn message(push: &Push, notification: Option<&Notification>, now_s: u64) -> Value {
    let ttl_s = push.ttl.as_secs().min(TTL_MAX_S);
    let mut message = json!({
        "token": push.token,
        "data": push.data,
        "android": android(push, ttl_s),
        "apns": apns(push, now_s + ttl_s),
    });
    if let Some(notification) = notification {
        message["notification"] = json!(notification);
    }
    message
}

fn android(push: &Push, ttl_s: u64) -> Value {
    // Pushes that show nothing must not be urgent: Android lowers apps that do that.
    let priority = if push.notification.is_some() {
        "HIGH"
    } else {
        "NORMAL"
    };
    let mut android = json!({ "priority": priority, "ttl": format!("{ttl_s}s") });
    if push.is_collapsible && !push.thread.is_empty() {
        android["collapse_key"] = collapse_id(&push.thread).into();
    }
    let mut shown = Map::new();
    if !push.thread.is_empty() {
        shown.insert("tag".to_owned(), push.thread.as_str().into());
    }
    if let Some(badge) = push.badge {
        shown.insert("notification_count".to_owned(), badge.into());
    }
    if push.notification.is_some() && !shown.is_empty() {
        android["notification"] = shown.into();
    }
    android
}

fn apns(push: &Push, expires_s: u64) -> Value {
    let is_shown = push.notification.is_some();
    let mut headers = json!({
        "apns-push-type": if is_shown { "alert" } else { "background" },
        "apns-priority": if is_shown { "10" } else { "5" },
        "apns-expiration": expires_s.to_string(),
    });
    let mut aps = Map::new();
    if is_shown {
        aps.insert("sound".to_owned(), "default".into());
        // The app's service extension may fetch or decrypt what is shown.
        aps.insert("mutable-content".to_owned(), 1.into());
    } else {
        aps.insert("content-available".to_owned(), 1.into());
    }
    if !push.thread.is_empty() {
        headers["apns-collapse-id"] = collapse_id(&push.thread).into();
        aps.insert("thread-id".to_owned(), push.thread.as_str().into());
    }
    if let Some(badge) = push.badge {
        aps.insert("badge".to_owned(), badge.into());
    }
    json!({ "headers": headers, "payload": { "aps": aps } })
}

/// Names a thread in at most 64 letters that a header can hold.
fn collapse_id(thread: &str) -> String {
    if thread.len() <= COLLAPSE_ID_BYTES_MAX && thread.bytes().all(|b| b.is_ascii_graphic()) {
        return thread.to_owned();
    }
    let hash = Sha256::digest(thread.as_bytes());
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn push() -> Push {
        Push {
            token: "t".repeat(160),
            notification: Some(Notification {
                title: "Garden".to_owned(),
                body: "see you".to_owned(),
            }),
            data: [("type".to_owned(), "message".to_owned())].into(),
            thread: "chat:42".to_owned(),
            is_collapsible: true,
            badge: Some(3),
            ttl: Duration::from_secs(86_400),
        }
    }

    fn made(push: &Push) -> Value {
        let body = body(push, 1_000).unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert!(value["message"].to_string().len() <= PAYLOAD_BYTES_MAX);
        value["message"].clone()
    }

    #[test]
    fn every_platform_has_its_block() {
        let message = made(&push());
        assert_eq!(
            message["android"],
            json!({
                "priority": "HIGH", "ttl": "86400s", "collapse_key": "chat:42",
                "notification": { "tag": "chat:42", "notification_count": 3 },
            })
        );
        assert_eq!(
            message["apns"],
            json!({
                "headers": {
                    "apns-push-type": "alert", "apns-priority": "10",
                    "apns-collapse-id": "chat:42", "apns-expiration": "87400",
                },
                "payload": { "aps": {
                    "badge": 3, "sound": "default", "thread-id": "chat:42", "mutable-content": 1,
                } },
            })
        );
        assert_eq!(
            message["notification"],
            json!({ "title": "Garden", "body": "see you" })
        );
        let silent = made(&Push {
            notification: None,
            is_collapsible: false,
            ..push()
        });
        assert_eq!(
            silent["android"],
            json!({ "priority": "NORMAL", "ttl": "86400s" })
        );
        assert_eq!(silent["apns"]["headers"]["apns-push-type"], "background");
        assert_eq!(silent["apns"]["payload"]["aps"]["content-available"], 1);
    }

    #[test]
    fn a_long_text_is_cut_inside_no_character() {
        for text in ["😀", "é", "\"", "\u{1}", "x"] {
            let mut push = push();
            push.notification = Some(Notification {
                title: "Garden".to_owned(),
                body: text.repeat(5_000),
            });
            let message = made(&push);
            let shown = message["notification"]["body"].as_str().unwrap();
            assert!(shown.ends_with(CUT));
            let filled = message.to_string().len();
            assert!(filled > PAYLOAD_BYTES_MAX - 10, "{text:?} leaves {filled}");
        }
        let mut huge = push();
        huge.data.insert("k".to_owned(), "x".repeat(5_000));
        assert!(body(&huge, 0).unwrap_err().contains("4096"));
        huge.notification = None;
        assert!(body(&huge, 0).is_err());
    }

    #[test]
    fn names_and_ids_are_what_fcm_accepts() {
        for name in ["from", "gcm.x", "google.c.a", "message_type"] {
            let mut push = push();
            push.data.insert(name.to_owned(), String::new());
            assert!(body(&push, 0).unwrap_err().contains(name));
        }
        for thread in ["x".repeat(255), "chat:Straße".to_owned()] {
            let id = collapse_id(&thread);
            assert!(id.len() <= COLLAPSE_ID_BYTES_MAX && id.is_ascii());
        }
        assert_ne!(collapse_id(&"x".repeat(255)), collapse_id(&"x".repeat(254)));
        let mut push = push();
        push.ttl = Duration::from_secs(u64::MAX);
        assert_eq!(made(&push)["android"]["ttl"], "2419200s");
    }
}
