//! Messages as a view of the log: edits, deletions, counts, retention, one user's data.

use std::collections::BTreeMap;

use shared::events::{PublicationEvent, PublicationKind};
use shared::ids::{ChannelName, MessageId};
use store::archive::{
    ArchiveError, ArchivedMessage, COUNT_MAX, MessageArchive, MessageQuery, PageQuery,
};

use crate::support::{channel, deletion, edit, event, unique};

pub async fn conform(archive: &dyn MessageArchive) {
    the_last_edit_is_what_a_message_says(archive).await;
    only_changes_of_the_same_channel_count(archive).await;
    a_deleted_message_is_a_tombstone_for_good(archive).await;
    a_change_without_a_message_is_refused(archive).await;
    messages_are_paged_by_offset_and_by_time(archive).await;
    unread_is_what_others_wrote(archive).await;
    counting_stops(archive).await;
    an_epoch_is_read_with_its_aliases(archive).await;
    retention_takes_the_front_and_raises_the_floor(archive).await;
    channels_are_listed_once(archive).await;
    an_erased_user_leaves_tombstones(archive).await;
}

fn all() -> MessageQuery {
    MessageQuery {
        limit: 1000,
        ..MessageQuery::default()
    }
}

fn by(user: &str, event: PublicationEvent) -> PublicationEvent {
    PublicationEvent {
        user: user.to_owned(),
        ..event
    }
}

async fn append(archive: &dyn MessageArchive, batch: &[PublicationEvent]) {
    let appended = archive.append(batch, &[]).await.unwrap();
    assert_eq!(appended.conflicting, []);
}

async fn view(archive: &dyn MessageArchive, name: &str) -> Vec<ArchivedMessage> {
    let page = archive.messages(&channel(name), all()).await.unwrap();
    page.messages
}

fn says(message: &ArchivedMessage) -> Option<&str> {
    message.data.as_deref().map(|data| data.get())
}

async fn offsets(archive: &dyn MessageArchive, name: &str, query: MessageQuery) -> Vec<u64> {
    let page = archive.messages(&channel(name), query).await.unwrap();
    page.messages.iter().map(|message| message.offset).collect()
}

async fn log(archive: &dyn MessageArchive, name: &str) -> Vec<PublicationEvent> {
    let query = PageQuery {
        limit: 1000,
        ..PageQuery::default()
    };
    archive.page(&channel(name), query).await.unwrap()
}

async fn the_last_edit_is_what_a_message_says(archive: &dyn MessageArchive) {
    let message = event("edits", "e", 1);
    let (second, first) = (edit(&message, 5, "\"b\""), edit(&message, 3, "\"a\""));
    let edited_at = second.published_at_ms;
    // The relay may turn neighbours round: no order of arrival matters.
    append(archive, &[second]).await;
    append(archive, &[first, event("edits", "e", 2)]).await;
    append(archive, std::slice::from_ref(&message)).await;
    let seen = view(archive, "edits").await;
    assert_eq!(seen.len(), 2, "an edit is no message");
    assert_eq!(says(&seen[0]), Some("\"b\""));
    assert_eq!((seen[0].id, seen[0].offset), (message.id, 1));
    assert_eq!(seen[0].edited_at_ms, Some(edited_at));
    assert_eq!(seen[1].edited_at_ms, None);
    let kinds: Vec<_> = log(archive, "edits").await;
    let kinds: Vec<_> = kinds.iter().map(|event| event.kind).collect();
    let (message_kind, edited) = (PublicationKind::Message, PublicationKind::Edited);
    assert_eq!(kinds, [message_kind, message_kind, edited, edited]);
    let one = archive
        .message(&channel("edits"), message.id)
        .await
        .unwrap();
    assert_eq!(says(&one.unwrap()), Some("\"b\""));
}

async fn only_changes_of_the_same_channel_count(archive: &dyn MessageArchive) {
    let message = event("home", "e", 1);
    let stranger = PublicationEvent {
        channel: channel("abroad"),
        ..message.clone()
    };
    let unknown = event("home", "e", 99);
    let batch = [
        message.clone(),
        edit(&stranger, 1, "\"forged\""),
        deletion(&stranger, 2),
        edit(&unknown, 2, "\"nothing\""),
    ];
    append(archive, &batch).await;
    let seen = view(archive, "home").await;
    assert_eq!(seen.len(), 1);
    assert_eq!(says(&seen[0]), Some(r#"{"n":1}"#));
    assert!(view(archive, "abroad").await.is_empty());
    let found = archive.message(&channel("abroad"), message.id).await;
    assert!(
        found.unwrap().is_none(),
        "an id is good in its channel only"
    );
}

async fn a_deleted_message_is_a_tombstone_for_good(archive: &dyn MessageArchive) {
    let message = event("deleted", "e", 1);
    let gone = deletion(&message, 3);
    let batch = [
        message.clone(),
        edit(&message, 2, "\"a\""),
        gone.clone(),
        edit(&message, 4, "\"back\""),
    ];
    append(archive, &batch).await;
    let seen = view(archive, "deleted").await;
    assert_eq!(seen.len(), 1);
    assert_eq!(says(&seen[0]), None);
    assert_eq!(seen[0].deleted_at_ms, Some(gone.published_at_ms));
}

async fn a_change_without_a_message_is_refused(archive: &dyn MessageArchive) {
    let broken = PublicationEvent {
        kind: PublicationKind::Edited,
        ..event("broken", "e", 1)
    };
    let refused = archive.append(&[broken], &[]).await.unwrap_err();
    assert!(matches!(refused, ArchiveError::Refused(_)), "{refused:?}");
}

async fn messages_are_paged_by_offset_and_by_time(archive: &dyn MessageArchive) {
    let messages: Vec<_> = (1..=9).map(|n| event("paged", "e", n * 10)).collect();
    append(archive, &messages).await;
    append(archive, &[edit(&messages[2], 35, "\"x\"")]).await;
    let time = |n: usize| Some(messages[n].published_at_ms);
    let page = |query| offsets(archive, "paged", query);
    let some = |limit| MessageQuery { limit, ..all() };
    let after = |after, limit| MessageQuery {
        after: Some(after),
        ..some(limit)
    };
    assert_eq!(page(after(20, 3)).await, [30, 40, 50]);
    let before = MessageQuery {
        before: Some(50),
        reverse: true,
        ..some(2)
    };
    assert_eq!(page(before).await, [40, 30]);
    let since = MessageQuery {
        after_time_ms: time(3),
        ..some(2)
    };
    assert_eq!(page(since).await, [50, 60]);
    let until = MessageQuery {
        before_time_ms: time(3),
        reverse: true,
        ..some(2)
    };
    assert_eq!(page(until).await, [30, 20]);
    let between = MessageQuery {
        after: Some(30),
        before_time_ms: time(6),
        ..some(2)
    };
    assert_eq!(page(between).await, [40, 50]);
    assert_eq!(page(some(0)).await, Vec::<u64>::new());
}

async fn unread_is_what_others_wrote(archive: &dyn MessageArchive) {
    let theirs: Vec<_> = (1..=6).map(|n| event("unread", "e", n)).collect();
    let mut batch = theirs.clone();
    batch.push(by("bob", event("unread", "e", 7)));
    batch.push(edit(&theirs[0], 8, "\"x\""));
    batch.push(deletion(&theirs[5], 9));
    batch.push(event("elsewhere unread", "e", 5));
    append(archive, &batch).await;
    let count = |after, user| async move {
        let counted = archive.count(&channel("unread"), after, user).await;
        counted.unwrap()
    };
    assert_eq!(count(0, "bob").await, 5, "neither edits nor deleted ones");
    assert_eq!(count(3, "bob").await, 2);
    assert_eq!(count(0, "ann").await, 1, "one's own are read");
    assert_eq!(count(100, "ann").await, 0);
}

async fn counting_stops(archive: &dyn MessageArchive) {
    let many: Vec<_> = (1..=1005).map(|n| event("many", "e", n)).collect();
    append(archive, &many).await;
    append(archive, &[deletion(&many[0], 2000)]).await;
    let count = |after| async move { archive.count(&channel("many"), after, "bob").await.unwrap() };
    assert_eq!(count(0).await, COUNT_MAX);
    assert_eq!(count(10).await, 995);
}

async fn an_epoch_is_read_with_its_aliases(archive: &dyn MessageArchive) {
    let name = "epochs";
    let mut batch: Vec<_> = (1..=2).map(|n| event(name, "e1", n)).collect();
    append(archive, &batch).await;
    let again = PublicationEvent {
        epoch: "e2".into(),
        offset: 101,
        ..batch.remove(1)
    };
    append(
        archive,
        &[
            event(name, "e2", 100),
            again.clone(),
            event(name, "e2", 102),
        ],
    )
    .await;
    let page = |epoch: &str, limit, reverse| {
        let query = PageQuery {
            epoch: Some(epoch.into()),
            limit,
            reverse,
            ..PageQuery::default()
        };
        async move {
            let page = archive.page(&channel(name), query).await.unwrap();
            page.iter()
                .map(|event| (event.offset, event.id))
                .collect::<Vec<_>>()
        }
    };
    let whole = page("e2", 1000, false).await;
    let offsets: Vec<u64> = whole.iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, [100, 101, 102], "no hole inside an epoch");
    assert_eq!(whole[1].1, again.id);
    let mut backwards = whole.clone();
    backwards.reverse();
    backwards.truncate(2);
    assert_eq!(page("e2", 2, true).await, backwards);
    assert_eq!(page("e1", 1000, false).await.len(), 2);
    assert_eq!(view(archive, name).await.len(), 4, "one message, one place");
}

async fn retention_takes_the_front_and_raises_the_floor(archive: &dyn MessageArchive) {
    let name = "kept";
    let channel = channel(name);
    let mut batch: Vec<_> = (1..=10).map(|n| event(name, "e", n)).collect();
    // Late and old: it stays until all before it may go.
    batch[8].published_at_ms = 0;
    let line = batch[5].published_at_ms;
    append(archive, &batch).await;
    let again = PublicationEvent {
        epoch: "e2".into(),
        offset: 7,
        ..batch[1].clone()
    };
    let kept = batch.remove(6);
    assert_eq!(kept.offset, 7);
    assert_eq!(archive.floor(&channel).await.unwrap(), None);
    let step = |limit| archive.expire(&channel, line, limit);
    let first = step(3).await.unwrap();
    assert_eq!((first.rows, first.is_done), (3, false));
    assert_eq!(archive.floor(&channel).await.unwrap(), Some(3));
    let second = step(3).await.unwrap();
    assert_eq!((second.rows, second.is_done), (2, true));
    let third = step(3).await.unwrap();
    assert_eq!((third.rows, third.is_done), (0, true));
    let page = archive.messages(&channel, all()).await.unwrap();
    let left: Vec<u64> = page.messages.iter().map(|m| m.offset).collect();
    assert_eq!(left, [6, 7, 8, 9, 10]);
    assert_eq!(page.floor, Some(5));
    // What comes late below the floor goes with the next step, and the floor stays.
    append(archive, std::slice::from_ref(&again)).await;
    append(archive, &batch[..1]).await;
    assert_eq!(step(1).await.unwrap().rows, 1);
    assert_eq!(archive.floor(&channel).await.unwrap(), Some(5));

    // An alias stands for its row: when that goes, so does the alias's place.
    let name = "kept alias";
    let channel = crate::support::channel(name);
    let old = event(name, "e1", 1);
    let again = PublicationEvent {
        epoch: "e2".into(),
        offset: 50,
        ..old.clone()
    };
    append(archive, &[old.clone(), event(name, "e2", 51)]).await;
    append(archive, &[again]).await;
    let line = old.published_at_ms + 1;
    assert_eq!(archive.expire(&channel, line, 100).await.unwrap().rows, 1);
    assert_eq!(archive.floor(&channel).await.unwrap(), Some(50));
}

async fn channels_are_listed_once(archive: &dyn MessageArchive) {
    let mut listed: Vec<ChannelName> = Vec::new();
    loop {
        let more = archive.channels(listed.last(), 3).await.unwrap();
        assert!(more.len() <= 3);
        if more.is_empty() {
            break;
        }
        listed.extend(more);
    }
    for name in ["edits", "kept", "many", "elsewhere unread"] {
        let found = listed.iter().filter(|known| known.as_str() == name);
        assert_eq!(found.count(), 1, "{name}");
    }
}

async fn an_erased_user_leaves_tombstones(archive: &dyn MessageArchive) {
    let (name, other) = ("erased", "erased too");
    let eve = unique("eve");
    let first = by(&eve, event(name, "e", 1));
    let theirs = by("bob", event(name, "e", 2));
    let batch = [
        first.clone(),
        theirs.clone(),
        by("moderator", edit(&first, 3, "\"milder\"")),
        by(&eve, edit(&theirs, 4, "\"hers\"")),
        by("bob", event(name, "e", 5)),
    ];
    append(archive, &batch).await;
    append(archive, &[by(&eve, event(other, "e", 1))]).await;

    let exported = archive.of_user(&eve, None, 2).await.unwrap();
    let rest = archive
        .of_user(&eve, exported.last().map(|event| event.id), 2)
        .await
        .unwrap();
    let ids: Vec<MessageId> = exported.iter().chain(&rest).map(|event| event.id).collect();
    assert_eq!(ids.len(), 3, "of all channels, each once");
    assert!(ids.is_sorted());

    assert_eq!(archive.erase(&eve, 2).await.unwrap(), 2);
    assert_eq!(archive.erase(&eve, 2).await.unwrap(), 1);
    assert_eq!(archive.erase(&eve, 2).await.unwrap(), 0, "done is done");
    assert!(archive.of_user(&eve, None, 10).await.unwrap().is_empty());
    // Delivered again by the log: it does not come back.
    append(archive, &batch).await;

    let rows = log(archive, name).await;
    let offsets: Vec<u64> = rows.iter().map(|row| row.offset).collect();
    assert_eq!(offsets, [1, 2, 3, 4, 5], "offsets stay gap-free");
    let text = serde_json::to_string(&rows).unwrap()
        + &serde_json::to_string(&log(archive, other).await).unwrap();
    for trace in [eve.as_str(), "milder", "hers", r#"{"n":1}"#] {
        assert!(!text.contains(trace), "{trace} is left in {text}");
    }
    assert_eq!(
        rows[3].target(),
        Some(theirs.id),
        "a tombstone keeps its kind"
    );
    let seen = view(archive, name).await;
    let said: Vec<_> = seen.iter().map(says).collect();
    assert_eq!(said, [None, None, Some(r#"{"n":5}"#)]);
    assert!(seen[0].deleted_at_ms.is_some() && seen[0].user.is_empty());
    assert_eq!(archive.count(&channel(name), 0, "nobody").await.unwrap(), 2);

    // Nobody is not a user: the server API's messages stay.
    append(archive, &[by("", event(name, "e", 6))]).await;
    assert_eq!(archive.erase("", 10).await.unwrap(), 0);
    assert!(archive.of_user("", None, 10).await.unwrap().is_empty());
}

/// Against the plain model: the last edit by offset, unless there is any deletion.
pub async fn any_order_of_changes_gives_one_view(
    archive: &dyn MessageArchive,
    seed: &[(u64, u64, u64)],
) {
    let name = unique("changes");
    let messages: Vec<_> = (1..=5).map(|n| event(&name, "e", n)).collect();
    let mut events = messages.clone();
    let mut model: BTreeMap<usize, (u64, Option<String>)> = BTreeMap::new();
    let mut gone = Vec::new();
    for (n, (message, what, _)) in seed.iter().enumerate() {
        let message = usize::try_from(*message).unwrap();
        let offset = 100 + n as u64;
        if *what == 0 {
            events.push(deletion(&messages[message], offset));
            gone.push(message);
        } else {
            let data = format!("\"{n}\"");
            events.push(edit(&messages[message], offset, &data));
            model.insert(message, (offset, Some(data)));
        }
    }
    // Any order of arrival: by the seed's own numbers.
    let order = |n: usize| seed.get(n % seed.len()).map_or(0, |(_, _, order)| *order);
    let mut arrival: Vec<_> = events.into_iter().enumerate().collect();
    arrival.sort_by_key(|(n, _)| order(*n));
    for (_, event) in arrival {
        append(archive, &[event]).await;
    }
    let seen = view(archive, &name).await;
    for (n, message) in seen.iter().enumerate() {
        let edited = model.get(&n).and_then(|(_, data)| data.clone());
        let original = format!(r#"{{"n":{}}}"#, n + 1);
        let expected = (!gone.contains(&n)).then(|| edited.unwrap_or(original));
        assert_eq!(
            says(message).map(str::to_owned),
            expected,
            "message {n} of {seed:?}"
        );
    }
    assert_eq!(seen.len(), 5);
}
