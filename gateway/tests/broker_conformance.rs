//! What a broker is: the suite that both implementations pass.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod between;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use between::*;
use bytes::Bytes;
use gateway::broker::{BrokerError, HistoryPolicy, HistoryRange, NewPublication, Signal};
use gateway::outbox::Settled;
use shared::ids::{ChannelName, Epoch};

on_both_brokers! {15:
    history_is_read_in_every_direction,
    history_keeps_its_size_and_its_time,
    a_position_of_another_epoch_is_refused,
    history_remove_keeps_the_position,
    a_channel_without_history_has_no_position,
    a_key_gives_the_first_result,
    a_key_with_another_payload_is_a_conflict,
    a_key_ends_with_its_time,
    keys_work_without_history,
    durable_offsets_begin_at_the_clock,
    the_outbox_holds_what_was_accepted,
    an_unknown_stream_is_superseded,
    calls_started_in_order_keep_their_order,
    concurrent_publishers_have_one_order_on_every_node,
    nothing_accepted_after_subscribing_is_missed,
    only_subscribed_channels_are_delivered,
    signals_reach_subscribers_in_order,
    payloads_of_any_kind_arrive_as_they_were
}

async fn publish_all(
    node: &TestNode,
    channel: &ChannelName,
    policy: &HistoryPolicy,
    texts: &[&str],
) {
    for text in texts {
        node.parts
            .broker
            .publish(kept(channel, text, policy))
            .await
            .unwrap();
    }
}

async fn history_is_read_in_every_direction(kind: Kind) {
    let node = node(kind).await;
    let (channel, policy) = (channel("history"), policy(3));
    let broker = node.broker();
    let empty = read(&*broker, &channel, &policy, all()).await;
    assert_eq!((empty.publications.len(), empty.top.offset), (0, 0));
    assert!(!empty.top.epoch.as_str().is_empty());

    publish_all(&node, &channel, &policy, &["1", "2", "3", "4", "5"]).await;
    let page = read(&*broker, &channel, &policy, all()).await;
    assert_eq!(texts(&page.publications), ["3", "4", "5"]);
    assert_eq!(page.top.offset, 5);
    assert_eq!(page.top.epoch, empty.top.epoch);

    let epoch = &page.top.epoch;
    let range = |since: Option<u64>, limit, reverse| HistoryRange {
        limit,
        reverse,
        ..since.map_or(all(), |offset| between::since(offset, epoch))
    };
    for (range, expected) in [
        (range(None, Some(2), false), &["3", "4"][..]),
        (range(None, Some(2), true), &["5", "4"]),
        (range(None, None, true), &["5", "4", "3"]),
        (range(None, Some(0), false), &[]),
        (range(Some(3), None, false), &["4", "5"]),
        (range(Some(3), Some(1), false), &["4"]),
        (range(Some(0), Some(9), false), &["3", "4", "5"]),
        (range(Some(5), None, false), &[]),
        (range(Some(9), None, false), &[]),
        (range(Some(5), Some(1), true), &["4"]),
        (range(Some(4), None, true), &["3"]),
        (range(Some(1), None, true), &[]),
        (range(Some(9), Some(2), true), &["5", "4"]),
    ] {
        let page = read(&*broker, &channel, &policy, range.clone()).await;
        assert_eq!(texts(&page.publications), expected, "{range:?}");
        assert_eq!(page.top.offset, 5);
    }
    let publication = &read(&*broker, &channel, &policy, all()).await.publications[0];
    assert_eq!(publication.offset, 3);
    assert!(publication.id.is_some());
    let age_ms = now_us() / 1000 - publication.published_at_ms;
    assert!(age_ms < 60_000, "{age_ms}");
}

async fn history_keeps_its_size_and_its_time(kind: Kind) {
    let node = node(kind).await;
    let (channel, large) = (channel("size"), policy(1_000));
    // More than what one node of a Redis stream holds, so that approximate trimming shows.
    for number in 0..250 {
        let publication = kept(&channel, &number.to_string(), &policy(10));
        node.parts.broker.publish(publication).await.unwrap();
    }
    let page = read(&*node.broker(), &channel, &policy(10), all()).await;
    assert_eq!(page.publications.len(), 10);
    assert_eq!((page.publications[0].offset, page.top.offset), (241, 250));

    let short = HistoryPolicy {
        ttl: Duration::from_millis(300),
        ..large
    };
    node.parts
        .broker
        .publish(kept(&channel, "last", &short))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let page = read(&*node.broker(), &channel, &policy(10), all()).await;
    assert_eq!(page.publications.len(), 0);
    assert_eq!(
        page.top.offset, 251,
        "the position outlives the publications"
    );
}

async fn a_position_of_another_epoch_is_refused(kind: Kind) {
    let node = node(kind).await;
    let (channel, policy) = (channel("epoch"), policy(10));
    publish_all(&node, &channel, &policy, &["1"]).await;
    let broker = node.broker();
    let refused = broker
        .history(&channel, &policy, since(0, &Epoch::from("another")))
        .await;
    assert!(
        matches!(refused, Err(BrokerError::UnrecoverablePosition)),
        "{refused:?}"
    );
    let unnamed = read(&*broker, &channel, &policy, since(0, &Epoch::from(""))).await;
    assert_eq!(texts(&unnamed.publications), ["1"]);
}

async fn history_remove_keeps_the_position(kind: Kind) {
    let node = node(kind).await;
    let (channel, policy) = (channel("remove"), policy(10));
    publish_all(&node, &channel, &policy, &["1", "2"]).await;
    let before = read(&*node.broker(), &channel, &policy, all()).await;
    node.parts.broker.history_remove(&channel).await.unwrap();
    let after = read(&*node.broker(), &channel, &policy, all()).await;
    assert_eq!((after.publications.len(), &after.top), (0, &before.top));
    publish_all(&node, &channel, &policy, &["3"]).await;
    let page = read(&*node.broker(), &channel, &policy, all()).await;
    assert_eq!(
        (texts(&page.publications), page.top.offset),
        (vec!["3".to_owned()], 3)
    );
}

async fn a_channel_without_history_has_no_position(kind: Kind) {
    let (here, there) = two_nodes(kind).await;
    let channel = channel("ephemeral");
    there.parts.broker.subscribe(&channel, None).await.unwrap();
    let published = here
        .parts
        .broker
        .publish(ephemeral(&channel, "\"a\""))
        .await
        .unwrap();
    assert_eq!((published.position, published.is_repeat), (None, false));
    assert!(published.outbox.is_none());
    there.seen.expect(&channel, 1).await;
    let line = Line::Publication {
        epoch: None,
        offset: 0,
        data: "\"a\"".to_owned(),
    };
    assert_eq!(there.seen.lines(&channel), [line]);
}

async fn a_key_gives_the_first_result(kind: Kind) {
    let (here, there) = two_nodes(kind).await;
    let (channel, policy) = (channel("key"), policy(10));
    there
        .parts
        .broker
        .subscribe(&channel, Some(&policy))
        .await
        .unwrap();
    let publication = with_key(kept(&channel, "1", &policy), "user:a", "k");
    let first = here
        .parts
        .broker
        .publish(publication.clone())
        .await
        .unwrap();
    let repeat = there
        .parts
        .broker
        .publish(publication.clone())
        .await
        .unwrap();
    assert!(!first.is_repeat && repeat.is_repeat);
    assert_eq!(first.position, repeat.position);
    assert_eq!(
        (first.id, first.published_at_ms),
        (repeat.id, repeat.published_at_ms)
    );
    let other = with_key(kept(&channel, "1", &policy), "user:b", "k");
    assert!(!here.parts.broker.publish(other).await.unwrap().is_repeat);
    assert_eq!(there.seen.expect(&channel, 2).await, ["1", "1"]);
}

async fn a_key_with_another_payload_is_a_conflict(kind: Kind) {
    let node = node(kind).await;
    let (channel, policy) = (channel("conflict"), policy(10));
    let publication = |text| with_key(kept(&channel, text, &policy), "user:a", "k");
    node.parts.broker.publish(publication("1")).await.unwrap();
    let conflict = node.parts.broker.publish(publication("2")).await;
    assert!(
        matches!(conflict, Err(BrokerError::KeyConflict)),
        "{conflict:?}"
    );
    let mut tagged = publication("1");
    tagged.tags.insert("a".to_owned(), "b".to_owned());
    let conflict = node.parts.broker.publish(tagged).await;
    assert!(
        matches!(conflict, Err(BrokerError::KeyConflict)),
        "{conflict:?}"
    );
    let page = read(&*node.broker(), &channel, &policy, all()).await;
    assert_eq!(texts(&page.publications), ["1"]);
}

async fn a_key_ends_with_its_time(kind: Kind) {
    let node = node(kind).await;
    let (channel, policy) = (channel("key-ttl"), policy(10));
    let mut publication = with_key(kept(&channel, "1", &policy), "user:a", "k");
    if let Some(idempotency) = &mut publication.idempotency {
        idempotency.ttl = Duration::from_millis(300);
    }
    node.parts
        .broker
        .publish(publication.clone())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(400)).await;
    let second = node.parts.broker.publish(publication).await.unwrap();
    assert!(!second.is_repeat);
    assert_eq!(second.position.map(|position| position.offset), Some(2));
}

async fn keys_work_without_history(kind: Kind) {
    let node = node(kind).await;
    let channel = channel("key-ephemeral");
    let publication = with_key(ephemeral(&channel, "1"), "api:default", "k");
    let first = node
        .parts
        .broker
        .publish(publication.clone())
        .await
        .unwrap();
    let repeat = node.parts.broker.publish(publication).await.unwrap();
    assert_eq!((first.is_repeat, repeat.is_repeat), (false, true));
    assert_eq!((repeat.position, repeat.id), (None, first.id));
}

async fn durable_offsets_begin_at_the_clock(kind: Kind) {
    let node = node(kind).await;
    let (channel, policy) = (channel("durable"), durable_policy(10));
    let before_us = now_us();
    let first = node
        .parts
        .broker
        .publish(kept(&channel, "1", &policy))
        .await
        .unwrap();
    let position = first.position.unwrap();
    assert!(position.offset > before_us && position.offset < before_us + 60_000_000);
    let page = read(&*node.broker(), &channel, &policy, all()).await;
    assert_eq!(page.top, position);
    let second = node
        .parts
        .broker
        .publish(kept(&channel, "2", &policy))
        .await
        .unwrap();
    assert_eq!(second.position.unwrap().offset, position.offset + 1);
}

async fn the_outbox_holds_what_was_accepted(kind: Kind) {
    let (here, there) = two_nodes(kind).await;
    let (channel, policy) = (channel("outbox"), durable_policy(10));
    let mut publication = with_key(kept(&channel, "{\"a\":1}", &policy), "user:a", "k");
    publication.info = Some(client("ann"));
    publication
        .tags
        .insert("id".to_owned(), publication.id.to_string());
    let published = here
        .parts
        .broker
        .publish(publication.clone())
        .await
        .unwrap();
    let entry = published.outbox.clone().expect("an outbox entry");
    assert_eq!(entry.channel, channel);
    assert_eq!(
        Some(&entry.epoch),
        published.position.as_ref().map(|position| &position.epoch)
    );
    assert_eq!(entry.publication.id, Some(publication.id));
    assert_eq!(entry.publication.info, publication.info);

    // Whoever repeats it finds the entry, and whoever sweeps does.
    let repeat = there
        .parts
        .broker
        .publish(publication.clone())
        .await
        .unwrap();
    let again = repeat.outbox.expect("the entry is still there");
    assert_eq!(
        (&again.entry_id, &again.publication),
        (&entry.entry_id, &entry.publication)
    );
    let stats = there.parts.outbox.stats().await.unwrap();
    assert!(stats.pending >= 1, "{stats:?}");
    // A lease of an earlier run may have to end first.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let found = loop {
        let left = there
            .parts
            .outbox
            .leftovers(Duration::ZERO, usize::MAX)
            .await
            .unwrap();
        if let Some(found) = left.into_iter().find(|left| left.channel == channel) {
            break found;
        }
        assert!(tokio::time::Instant::now() < deadline, "never a leftover");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    assert_eq!(found.publication, entry.publication);
    let young = there
        .parts
        .outbox
        .leftovers(Duration::from_secs(60), usize::MAX)
        .await
        .unwrap();
    assert!(young.iter().all(|young| young.channel != channel));

    assert_eq!(
        here.parts.outbox.settle(&entry).await.unwrap(),
        Settled::Current
    );
    assert_eq!(
        there.parts.outbox.settle(&entry).await.unwrap(),
        Settled::Current
    );
    let repeat = there.parts.broker.publish(publication).await.unwrap();
    assert!(repeat.is_repeat && repeat.outbox.is_none());
}

async fn an_unknown_stream_is_superseded(kind: Kind) {
    let node = node(kind).await;
    let (channel, policy) = (channel("superseded"), durable_policy(10));
    let published = node
        .parts
        .broker
        .publish(kept(&channel, "1", &policy))
        .await
        .unwrap();
    let mut entry = published.outbox.unwrap();
    entry.epoch = "elsewhere".into();
    assert_eq!(
        node.parts.outbox.settle(&entry).await.unwrap(),
        Settled::Superseded
    );
}

async fn calls_started_in_order_keep_their_order(kind: Kind) {
    let node = node(kind).await;
    let (channel, policy) = (channel("started"), policy(1_000));
    node.parts
        .broker
        .subscribe(&channel, Some(&policy))
        .await
        .unwrap();
    let sent: Vec<String> = (0..500).map(|number| number.to_string()).collect();
    let calls = sent
        .iter()
        .map(|text| node.parts.broker.publish(kept(&channel, text, &policy)));
    for (number, published) in futures::future::join_all(calls)
        .await
        .into_iter()
        .enumerate()
    {
        let offset = published.unwrap().position.unwrap().offset;
        assert_eq!(offset, number as u64 + 1);
    }
    assert_eq!(node.seen.expect(&channel, 500).await, sent);
}

async fn concurrent_publishers_have_one_order_on_every_node(kind: Kind) {
    let (here, there) = two_nodes(kind).await;
    let (channel, policy) = (channel("order"), policy(2_000));
    for node in [&here, &there] {
        node.parts
            .broker
            .subscribe(&channel, Some(&policy))
            .await
            .unwrap();
    }
    let publishers = (0..8).map(|publisher| {
        let node = if publisher % 2 == 0 {
            Arc::clone(&here)
        } else {
            Arc::clone(&there)
        };
        let (channel, policy) = (channel.clone(), policy.clone());
        tokio::spawn(async move {
            for number in 0..100 {
                let text = format!("\"{publisher}-{number}\"");
                node.parts
                    .broker
                    .publish(kept(&channel, &text, &policy))
                    .await
                    .unwrap();
            }
        })
    });
    for publisher in publishers.collect::<Vec<_>>() {
        publisher.await.unwrap();
    }
    let first = here.seen.expect(&channel, 800).await;
    let second = there.seen.expect(&channel, 800).await;
    let expected: Vec<u64> = (1..=800).collect();
    assert_eq!(here.seen.offsets(&channel), expected);
    assert_eq!(there.seen.offsets(&channel), expected);
    assert_eq!(first, second);
    let page = read(&*here.broker(), &channel, &policy, all()).await;
    assert_eq!(texts(&page.publications), first);
}

async fn nothing_accepted_after_subscribing_is_missed(kind: Kind) {
    let (here, there) = two_nodes(kind).await;
    let policy = policy(10_000);
    for _ in 0..10 {
        let channel = channel("race");
        let (is_over, accepted) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let publishing = tokio::spawn({
            let (is_over, accepted) = (Arc::clone(&is_over), Arc::clone(&accepted));
            let (here, channel, policy) = (Arc::clone(&here), channel.clone(), policy.clone());
            async move {
                while !is_over.load(Ordering::SeqCst) {
                    here.parts
                        .broker
                        .publish(kept(&channel, "1", &policy))
                        .await
                        .unwrap();
                    accepted.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        eventually("something is published", || {
            accepted.load(Ordering::SeqCst) > 3
        })
        .await;
        there
            .parts
            .broker
            .subscribe(&channel, Some(&policy))
            .await
            .unwrap();
        let before = accepted.load(Ordering::SeqCst);
        eventually("more is published", || {
            accepted.load(Ordering::SeqCst) > before + 20
        })
        .await;
        is_over.store(true, Ordering::SeqCst);
        publishing.await.unwrap();
        let total = accepted.load(Ordering::SeqCst) as u64;
        eventually("the last one comes", || {
            there.seen.offsets(&channel).last() == Some(&total)
        })
        .await;
        let offsets = there.seen.offsets(&channel);
        // One may have been accepted before and counted after the subscribe.
        assert!(
            offsets[0] <= before as u64 + 2,
            "{} after {before}",
            offsets[0]
        );
        let contiguous: Vec<u64> = (offsets[0]..=total).collect();
        assert_eq!(offsets, contiguous);
        there.parts.broker.unsubscribe(&channel).await.unwrap();
    }
}

async fn only_subscribed_channels_are_delivered(kind: Kind) {
    let (here, there) = two_nodes(kind).await;
    let (channel, other, policy) = (channel("subscribed"), channel("other"), policy(10));
    there
        .parts
        .broker
        .subscribe(&channel, Some(&policy))
        .await
        .unwrap();
    there
        .parts
        .broker
        .subscribe(&channel, Some(&policy))
        .await
        .unwrap();
    publish_all(&here, &other, &policy, &["x"]).await;
    publish_all(&here, &channel, &policy, &["1"]).await;
    assert_eq!(there.seen.expect(&channel, 1).await, ["1"]);
    assert!(there.seen.data(&other).is_empty());

    there.parts.broker.unsubscribe(&channel).await.unwrap();
    there.parts.broker.unsubscribe(&channel).await.unwrap();
    publish_all(&here, &channel, &policy, &["2"]).await;
    // A later subscribe is behind the unsubscribe: what comes after it is all that comes.
    there
        .parts
        .broker
        .subscribe(&channel, Some(&policy))
        .await
        .unwrap();
    publish_all(&here, &channel, &policy, &["3"]).await;
    let seen = there.seen.expect(&channel, 2).await;
    assert_eq!(seen, ["1", "3"]);
}

async fn signals_reach_subscribers_in_order(kind: Kind) {
    let (here, there) = two_nodes(kind).await;
    let channel = channel("signals");
    there.parts.broker.subscribe(&channel, None).await.unwrap();
    let (ann, bob) = (client("ann"), client("bob"));
    let signals = [
        Signal::Join(Arc::clone(&ann)),
        Signal::Join(bob),
        Signal::Leave(ann),
    ];
    let told = signals
        .into_iter()
        .map(|signal| here.parts.broker.signal(&channel, signal));
    futures::future::try_join_all(told).await.unwrap();
    eventually("three signals", || there.seen.lines(&channel).len() == 3).await;
    let (ann, bob) = ("ann".to_owned(), "bob".to_owned());
    let expected = [Line::Join(ann.clone()), Line::Join(bob), Line::Leave(ann)];
    assert_eq!(there.seen.lines(&channel), expected);
}

async fn payloads_of_any_kind_arrive_as_they_were(kind: Kind) {
    let (here, there) = two_nodes(kind).await;
    let (channel, policy) = (channel("payloads gr\u{fc}n {1} \u{1f600}"), policy(10));
    there
        .parts
        .broker
        .subscribe(&channel, Some(&policy))
        .await
        .unwrap();
    let large = format!("\"{}\"", "\u{e9}".repeat(32 * 1024 - 1));
    assert_eq!(large.len(), 64 * 1024);
    for text in ["{}", "\"\u{1f600} \\u0000 \u{2028}\"", &large] {
        let mut publication = kept(&channel, text, &policy);
        publication.info = Some(client("\u{e4}nn"));
        publication
            .tags
            .insert("gr\u{fc}n".to_owned(), "\u{1f600}".repeat(200));
        let count = there.seen.publications(&channel).len();
        here.parts
            .broker
            .publish(publication.clone())
            .await
            .unwrap();
        there.seen.expect(&channel, count + 1).await;
        let seen = there.seen.publications(&channel);
        let seen = seen.last().unwrap();
        assert_eq!(seen.data, Bytes::copy_from_slice(text.as_bytes()));
        assert_eq!(
            (&seen.info, &seen.tags),
            (&publication.info, &publication.tags)
        );
        assert_eq!(seen.id, Some(publication.id));
    }
    let page = read(&*here.broker(), &channel, &policy, all()).await;
    assert_eq!(page.publications, there.seen.publications(&channel));
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

/// What only a broker over a network can suffer.
mod redis_faults {
    use super::*;
    use gateway::broker::ReasonLabel;
    use redis::AsyncCommands;
    use shared::config::BrokerConfig;

    const KIND: Kind = Kind::Redis(15);

    /// Kills a node's own connections of one role; returns how many there were.
    async fn kill(node: &TestNode, role: &str) -> usize {
        let mut raw = raw_redis(KIND).await;
        let name = format!("name=wyd:{role}:{} ", node.id);
        let list: String = redis::cmd("CLIENT")
            .arg("LIST")
            .query_async(&mut raw)
            .await
            .unwrap();
        let mut killed = 0;
        for line in list.lines().filter(|line| line.contains(&name)) {
            let id = line
                .split_whitespace()
                .find_map(|field| field.strip_prefix("id="))
                .unwrap();
            let count: usize = redis::cmd("CLIENT")
                .arg("KILL")
                .arg("ID")
                .arg(id)
                .query_async(&mut raw)
                .await
                .unwrap();
            killed += count;
        }
        killed
    }

    fn repairs(node: &TestNode, reason: &'static str) -> u64 {
        node.parts
            .metrics
            .repairs
            .get_or_create(&ReasonLabel { reason })
            .get()
    }

    /// Puts a copy of the last publication into the stream and counts it, without a bell.
    async fn publish_silently(channel: &ChannelName) {
        let mut raw = raw_redis(KIND).await;
        let (stream, meta) = (key("s", channel), key("m", channel));
        let top: u64 = raw.hget(&meta, "top").await.unwrap();
        let found: Entries = redis::cmd("XREVRANGE")
            .arg(&stream)
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(1)
            .query_async(&mut raw)
            .await
            .unwrap();
        let mut item = found[0].1[0].1.clone();
        item[2..10].copy_from_slice(&(top + 1).to_le_bytes());
        let id = format!("{}-0", top + 1);
        let added: String = redis::cmd("XADD")
            .arg(&stream)
            .arg(id)
            .arg("p")
            .arg(item)
            .query_async(&mut raw)
            .await
            .unwrap();
        assert!(added.ends_with("-0"));
        let _: () = raw.hset(&meta, "top", top + 1).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_lost_connection_is_repaired_from_the_stream() {
        let (here, there) = two_nodes(KIND).await;
        let (channel, policy) = (channel("kill"), policy(10_000));
        there
            .parts
            .broker
            .subscribe(&channel, Some(&policy))
            .await
            .unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let publishing = tokio::spawn({
            let (is_over, here) = (Arc::clone(&is_over), Arc::clone(&here));
            let (channel, policy) = (channel.clone(), policy.clone());
            async move {
                let mut accepted = 0u64;
                while !is_over.load(Ordering::SeqCst) {
                    here.parts
                        .broker
                        .publish(kept(&channel, "1", &policy))
                        .await
                        .unwrap();
                    accepted += 1;
                    tokio::time::sleep(Duration::from_micros(500)).await;
                }
                accepted
            }
        });
        for _ in 0..5 {
            assert_eq!(kill(&there, "bell").await, 1);
            eventually("the bell is heard again", || there.parts.broker.is_up()).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        is_over.store(true, Ordering::SeqCst);
        let accepted = publishing.await.unwrap();
        within(Duration::from_secs(3), "everything comes", || {
            there.seen.offsets(&channel).last() == Some(&accepted)
        })
        .await;
        let expected: Vec<u64> = (1..=accepted).collect();
        assert_eq!(there.seen.offsets(&channel), expected);
        assert!(!there.seen.lines(&channel).contains(&Line::Lost));
        assert!(repairs(&there, "reconnect") >= 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn publishing_goes_on_after_its_connections_were_killed() {
        let node = node(KIND).await;
        let (channel, policy) = (channel("kill-publish"), policy(100));
        for round in 1..=3u64 {
            kill(&node, "publish").await;
            kill(&node, "main").await;
            let deadline = tokio::time::Instant::now() + PATIENCE;
            // The outcome of the first attempt may be unknown: that is what the error says.
            while node
                .parts
                .broker
                .publish(kept(&channel, "1", &policy))
                .await
                .is_err()
            {
                assert!(tokio::time::Instant::now() < deadline);
            }
            let page = read(&*node.broker(), &channel, &policy, all()).await;
            assert!(page.top.offset >= round);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_lost_bell_is_noticed_within_three_seconds() {
        let node = node(KIND).await;
        let (channel, policy) = (channel("lost-bell"), policy(100));
        node.parts
            .broker
            .subscribe(&channel, Some(&policy))
            .await
            .unwrap();
        publish_all(&node, &channel, &policy, &["1"]).await;
        node.seen.expect(&channel, 1).await;
        publish_silently(&channel).await;
        within(Duration::from_secs(3), "the position check repairs", || {
            node.seen.offsets(&channel) == [1, 2]
        })
        .await;
        assert_eq!(repairs(&node, "position_check"), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_gap_is_filled_before_what_follows() {
        let node = node(KIND).await;
        let (channel, policy) = (channel("gap"), policy(100));
        node.parts
            .broker
            .subscribe(&channel, Some(&policy))
            .await
            .unwrap();
        publish_all(&node, &channel, &policy, &["1"]).await;
        publish_silently(&channel).await;
        publish_silently(&channel).await;
        publish_all(&node, &channel, &policy, &["4"]).await;
        assert_eq!(node.seen.expect(&channel, 4).await, ["1", "1", "1", "4"]);
        assert_eq!(node.seen.offsets(&channel), [1, 2, 3, 4]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stream_that_is_gone_is_told() {
        let node = node(KIND).await;
        let (channel, policy) = (channel("gone"), policy(100));
        node.parts
            .broker
            .subscribe(&channel, Some(&policy))
            .await
            .unwrap();
        publish_all(&node, &channel, &policy, &["1"]).await;
        node.seen.expect(&channel, 1).await;
        publish_silently(&channel).await;
        let _: () = raw_redis(KIND).await.del(key("s", &channel)).await.unwrap();
        publish_all(&node, &channel, &policy, &["3"]).await;
        node.seen.expect(&channel, 2).await;
        let lines = node.seen.lines(&channel);
        assert!(
            matches!(
                lines[1..],
                [Line::Lost, Line::Publication { offset: 3, .. }]
            ),
            "{lines:?}"
        );
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn another_primary_is_a_new_epoch() {
        for policy in [policy(100), durable_policy(100)] {
            let node = node(KIND).await;
            let channel = channel("failover");
            node.parts
                .broker
                .subscribe(&channel, Some(&policy))
                .await
                .unwrap();
            publish_all(&node, &channel, &policy, &["1", "2"]).await;
            node.seen.expect(&channel, 2).await;
            let before = read(&*node.broker(), &channel, &policy, all()).await.top;
            // As if the data were a copy that came from elsewhere.
            let mut raw = raw_redis(KIND).await;
            let _: () = raw
                .hset(key("m", &channel), "replid", "0".repeat(40))
                .await
                .unwrap();
            let published = node
                .parts
                .broker
                .publish(kept(&channel, "3", &policy))
                .await
                .unwrap();
            let after = published.position.unwrap();
            assert_ne!(before.epoch, after.epoch);
            if policy.durable {
                assert!(after.offset > before.offset + 1);
            } else {
                assert_eq!(after.offset, 1);
            }
            node.seen.expect(&channel, 3).await;
            let lines = node.seen.lines(&channel);
            let last = Line::Publication {
                epoch: Some(after.epoch.clone()),
                offset: after.offset,
                data: "3".to_owned(),
            };
            assert_eq!(lines[2..], [Line::Lost, last], "{lines:?}");
            assert_eq!(node.parts.metrics.epoch_changes.get(), 1);
            let page = read(&*node.broker(), &channel, &policy, all()).await;
            assert_eq!(texts(&page.publications), ["3"]);
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn another_primary_is_noticed_in_silence() {
        let node = node(KIND).await;
        let (channel, policy) = (channel("silent-failover"), policy(100));
        node.parts
            .broker
            .subscribe(&channel, Some(&policy))
            .await
            .unwrap();
        publish_all(&node, &channel, &policy, &["1"]).await;
        node.seen.expect(&channel, 1).await;
        let _: () = raw_redis(KIND).await.del(key("m", &channel)).await.unwrap();
        within(Duration::from_secs(3), "the change is told", || {
            node.seen.lines(&channel).last() == Some(&Line::Lost)
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn forgotten_scripts_are_loaded_again_in_order() {
        let node = Arc::new(node(KIND).await);
        let (channel, policy) = (channel("noscript"), policy(10_000));
        node.parts
            .broker
            .subscribe(&channel, Some(&policy))
            .await
            .unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let forgetting = tokio::spawn({
            let is_over = Arc::clone(&is_over);
            async move {
                let mut raw = raw_redis(KIND).await;
                while !is_over.load(Ordering::SeqCst) {
                    let _: () = redis::cmd("SCRIPT")
                        .arg("FLUSH")
                        .query_async(&mut raw)
                        .await
                        .unwrap();
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            }
        });
        let sent: Vec<String> = (0..2_000).map(|number| number.to_string()).collect();
        let mut refused = 0;
        for batch in sent.chunks(100) {
            let calls = batch
                .iter()
                .map(|text| node.parts.broker.publish(kept(&channel, text, &policy)));
            let answers = futures::future::join_all(calls).await;
            // Forgotten twice in a row is an error; what counts is that nothing changes places.
            refused += answers.iter().filter(|answer| answer.is_err()).count();
        }
        is_over.store(true, Ordering::SeqCst);
        forgetting.await.unwrap();
        let seen = node.seen.expect(&channel, sent.len() - refused).await;
        let numbers: Vec<u32> = seen.iter().map(|text| text.parse().unwrap()).collect();
        assert!(numbers.is_sorted(), "order was kept");
        assert!(refused < sent.len() / 2, "{refused} refused");
        assert_eq!(seen.len(), sent.len() - refused);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn keys_of_another_type_are_errors() {
        let node = node(KIND).await;
        let mut raw = raw_redis(KIND).await;
        let policy = durable_policy(10);

        let meta = channel("wrong-meta");
        let _: () = raw.set_ex(key("m", &meta), "text", 60).await.unwrap();
        let published = node.parts.broker.publish(kept(&meta, "1", &policy)).await;
        assert!(
            matches!(published, Err(BrokerError::Corrupt(_))),
            "{published:?}"
        );
        let page = node.parts.broker.history(&meta, &policy, all()).await;
        assert!(matches!(page, Err(BrokerError::Corrupt(_))), "{page:?}");
        assert!(
            node.parts
                .broker
                .subscribe(&meta, Some(&policy))
                .await
                .is_err()
        );

        let stream = channel("wrong-stream");
        node.parts
            .broker
            .publish(kept(&stream, "1", &policy))
            .await
            .unwrap();
        let outbox_before = outbox_length(&stream).await;
        let _: () = raw.set_ex(key("s", &stream), "text", 60).await.unwrap();
        let published = node.parts.broker.publish(kept(&stream, "2", &policy)).await;
        assert!(
            matches!(published, Err(BrokerError::Corrupt(_))),
            "{published:?}"
        );
        assert_eq!(
            outbox_length(&stream).await,
            outbox_before,
            "nothing is half done"
        );

        let record = channel("wrong-record");
        let publication = with_key(kept(&record, "1", &policy), "s", "k");
        let partition = key("", &record);
        let partition = partition.split("::").next().unwrap();
        let name = format!("{partition}:i:s:{}:{record}:k", record.as_str().len());
        let _: () = raw.lpush(&name, "x").await.unwrap();
        let published = node.parts.broker.publish(publication).await;
        assert!(
            matches!(published, Err(BrokerError::Corrupt(_))),
            "{published:?}"
        );
        let _: () = raw.del(&name).await.unwrap();

        let healthy = channel("healthy");
        node.parts
            .broker
            .subscribe(&healthy, Some(&policy))
            .await
            .unwrap();
        publish_all(&node, &healthy, &policy, &["1"]).await;
        assert_eq!(node.seen.expect(&healthy, 1).await, ["1"]);
    }

    async fn outbox_length(channel: &ChannelName) -> u64 {
        let mut raw = raw_redis(KIND).await;
        raw.xlen(outbox_key(channel)).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_full_outbox_refuses_before_anything_is_shown() {
        let config = BrokerConfig {
            outbox_entries_max: 0,
            ..BrokerConfig::default()
        };
        let node = node_with(KIND, config).await.unwrap();
        let (channel, policy) = (channel("full"), durable_policy(10));
        let top = read(&*node.broker(), &channel, &policy, all()).await.top;
        let refused = node
            .parts
            .broker
            .publish(kept(&channel, "1", &policy))
            .await;
        assert!(
            matches!(refused, Err(BrokerError::Refused(_))),
            "{refused:?}"
        );
        let page = read(&*node.broker(), &channel, &policy, all()).await;
        assert_eq!((page.publications.len(), page.top), (0, top));
        let ephemeral: NewPublication = ephemeral(&channel, "1");
        node.parts.broker.publish(ephemeral).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_does_not_go_together_is_refused_at_start() {
        node(KIND).await;
        let config = BrokerConfig {
            partitions: 128,
            ..BrokerConfig::default()
        };
        let error = node_with(KIND, config)
            .await
            .err()
            .expect("another partition count");
        assert!(error.to_string().contains("256 partitions"), "{error}");
        assert!(matches!(error, BrokerError::Incompatible(_)));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn everything_expires() {
        let node = node(KIND).await;
        let (channel, policy) = (channel("expiry"), policy(10));
        let publication = with_key(kept(&channel, "1", &policy), "s", "k");
        node.parts.broker.publish(publication).await.unwrap();
        let mut raw = raw_redis(KIND).await;
        let stream: i64 = raw.pttl(key("s", &channel)).await.unwrap();
        let meta: i64 = raw.pttl(key("m", &channel)).await.unwrap();
        assert!((1..=60_000).contains(&stream), "{stream}");
        assert!((stream + 1..=600_000).contains(&meta), "{meta}");
    }
}
