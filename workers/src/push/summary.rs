//! What a push says about the messages of a channel.

use std::collections::BTreeMap;

use serde::Deserialize;
use shared::events::{PublicationEvent, PushAbout, PushEvent, PushNotification};
use uuid::Uuid;

/// Longest text that travels in the job; what is shown is shorter still.
const TEXT_CHARS_MAX: usize = 1_000;

/// How a channel's pushes are written.
pub(super) struct Style<'a> {
    /// The channel's name; empty when it has none.
    pub(super) title: &'a str,
    pub(super) show_text: bool,
    pub(super) ttl_ms: u64,
    pub(super) now_ms: u64,
}

/// Makes one user's push about some messages of a channel, in their order; `None` without any.
pub(super) fn summarize(
    user: &str,
    messages: &[&PublicationEvent],
    style: &Style<'_>,
) -> Option<PushEvent> {
    let newest = messages.last()?;
    let count = u32::try_from(messages.len()).unwrap_or(u32::MAX);
    let sender = sender(newest);
    let title = match style.title {
        "" if count == 1 => sender.clone(),
        "" => String::new(),
        title => title.to_owned(),
    };
    let body = match (count, text(newest).filter(|_| style.show_text)) {
        (1, Some(text)) if style.title.is_empty() => text,
        (1, Some(text)) => format!("{sender}: {text}"),
        (1, None) => "New message".to_owned(),
        (count, _) => format!("{count} new messages"),
    };
    let data = [
        ("type", "message".to_owned()),
        ("channel", newest.channel.to_string()),
        ("message_id", newest.id.to_string()),
        ("offset", newest.offset.to_string()),
        ("sender", newest.user.clone()),
        ("count", count.to_string()),
        ("sent_at_ms", newest.published_at_ms.to_string()),
    ];
    let data: BTreeMap<_, _> = data.map(|(key, value)| (key.to_owned(), value)).into();
    Some(PushEvent {
        id: Uuid::new_v5(newest.id.as_uuid(), user.as_bytes()),
        user: user.to_owned(),
        about: Some(PushAbout {
            channel: newest.channel.clone(),
            message_id: newest.id,
            offset: newest.offset,
            count,
        }),
        notification: Some(PushNotification { title, body }),
        data,
        collapse_key: newest.channel.to_string(),
        requested_at_ms: style.now_ms,
        expires_at_ms: newest.published_at_ms.saturating_add(style.ttl_ms),
    })
}

/// Reads what was written, where the application's data has it in the usual place.
fn text(message: &PublicationEvent) -> Option<String> {
    #[derive(Deserialize)]
    struct Data {
        text: String,
    }
    let data: Data = serde_json::from_str(message.data.get()).ok()?;
    let text: String = data.text.chars().take(TEXT_CHARS_MAX).collect();
    (!text.trim().is_empty()).then_some(text)
}

/// Returns the name that the sender's connection token gave, else the user.
fn sender(message: &PublicationEvent) -> String {
    #[derive(Deserialize)]
    struct Info {
        name: String,
    }
    let info = message
        .info
        .as_ref()
        .and_then(|info| info.conn_info.as_ref());
    let named = info.and_then(|info| serde_json::from_str::<Info>(info.get()).ok());
    named.map_or_else(|| message.user.clone(), |info| info.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::value::RawValue;
    use shared::events::PublicationKind;
    use shared::ids::{ChannelName, MessageId};
    use shared::protocol::Tags;

    fn message(offset: u64, data: &str) -> PublicationEvent {
        PublicationEvent {
            id: MessageId::now(),
            kind: PublicationKind::Message,
            channel: ChannelName::new("chat:1").unwrap(),
            epoch: "e".into(),
            offset,
            user: "ann".to_owned(),
            info: None,
            data: RawValue::from_string(data.to_owned()).unwrap(),
            tags: Tags::new(),
            published_at_ms: 1_000,
        }
    }

    fn shown(messages: &[&PublicationEvent], title: &str, show_text: bool) -> (String, String) {
        let style = Style {
            title,
            show_text,
            ttl_ms: 500,
            now_ms: 1_200,
        };
        let event = summarize("bob", messages, &style).unwrap();
        assert_eq!(event.expires_at_ms, 1_500);
        assert_eq!(Some(&event), summarize("bob", messages, &style).as_ref());
        let shown = event.notification.unwrap();
        (shown.title, shown.body)
    }

    #[test]
    fn one_message_is_shown_and_several_are_counted() {
        let hello = message(1, r#"{"text":"hello"}"#);
        let other = message(2, r#"{"x":1}"#);
        let is = |shown: (String, String), title: &str, body: &str| {
            assert_eq!(shown, (title.to_owned(), body.to_owned()));
        };
        is(shown(&[&hello], "", true), "ann", "hello");
        is(shown(&[&hello], "Garden", true), "Garden", "ann: hello");
        is(shown(&[&hello], "Garden", false), "Garden", "New message");
        is(shown(&[&other], "Garden", true), "Garden", "New message");
        is(
            shown(&[&hello, &other], "Garden", true),
            "Garden",
            "2 new messages",
        );
    }
}
