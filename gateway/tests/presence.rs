//! Who is on a channel: the suite that both implementations pass, and what only several nodes see.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod between;

use std::collections::BTreeSet;
use std::sync::Arc;

use between::*;
use gateway::presence::PresenceStats;
use shared::ids::ChannelName;

on_both_brokers! {11:
    members_come_and_go,
    users_are_counted_once,
    members_of_every_node_are_listed,
    channels_are_apart
}

async fn stats(node: &TestNode, channel: &ChannelName) -> (u32, u32) {
    let PresenceStats {
        num_clients,
        num_users,
    } = node.parts.presence.stats(channel).await.unwrap();
    (num_clients, num_users)
}

async fn users(node: &TestNode, channel: &ChannelName) -> BTreeSet<String> {
    let members = node.parts.presence.members(channel).await.unwrap();
    members.iter().map(|info| info.user.to_string()).collect()
}

async fn members_come_and_go(kind: Kind) {
    let node = node(kind).await;
    let (channel, ann) = (channel("members"), client("ann"));
    assert_eq!(stats(&node, &channel).await, (0, 0));
    assert!(
        node.parts
            .presence
            .add(&channel, Arc::clone(&ann))
            .await
            .unwrap()
    );
    assert!(
        !node
            .parts
            .presence
            .add(&channel, Arc::clone(&ann))
            .await
            .unwrap()
    );
    assert_eq!(
        node.parts.presence.members(&channel).await.unwrap(),
        [Arc::clone(&ann)]
    );
    assert_eq!(stats(&node, &channel).await, (1, 1));
    assert!(
        node.parts
            .presence
            .remove(&channel, ann.client)
            .await
            .unwrap()
    );
    assert!(
        !node
            .parts
            .presence
            .remove(&channel, ann.client)
            .await
            .unwrap()
    );
    assert_eq!(stats(&node, &channel).await, (0, 0));
    assert!(
        node.parts
            .presence
            .members(&channel)
            .await
            .unwrap()
            .is_empty()
    );
}

async fn users_are_counted_once(kind: Kind) {
    let node = node(kind).await;
    let channel = channel("users");
    // A long name needs two bytes for its length; the anonymous user's is empty.
    let long = "\u{e4}".repeat(200);
    let clients = [
        client("ann"),
        client("ann"),
        client(""),
        client(&long),
        client(&long),
    ];
    for client in &clients {
        node.parts
            .presence
            .add(&channel, Arc::clone(client))
            .await
            .unwrap();
    }
    assert_eq!(stats(&node, &channel).await, (5, 3));
    for (index, expected) in [
        (0, (4, 3)),
        (1, (3, 2)),
        (2, (2, 1)),
        (3, (1, 1)),
        (4, (0, 0)),
    ] {
        node.parts
            .presence
            .remove(&channel, clients[index].client)
            .await
            .unwrap();
        assert_eq!(stats(&node, &channel).await, expected, "after {index}");
    }
}

async fn members_of_every_node_are_listed(kind: Kind) {
    let (here, there) = two_nodes(kind).await;
    let channel = channel("nodes");
    here.parts
        .presence
        .add(&channel, client("ann"))
        .await
        .unwrap();
    there
        .parts
        .presence
        .add(&channel, client("bob"))
        .await
        .unwrap();
    for node in [&here, &there] {
        assert_eq!(
            users(node, &channel).await,
            ["ann".to_owned(), "bob".to_owned()].into()
        );
        assert_eq!(stats(node, &channel).await, (2, 2));
    }
}

async fn channels_are_apart(kind: Kind) {
    let node = node(kind).await;
    let (first, second, ann) = (channel("first"), channel("second"), client("ann"));
    node.parts
        .presence
        .add(&first, Arc::clone(&ann))
        .await
        .unwrap();
    node.parts
        .presence
        .add(&second, Arc::clone(&ann))
        .await
        .unwrap();
    node.parts
        .presence
        .remove(&first, ann.client)
        .await
        .unwrap();
    assert_eq!(
        (stats(&node, &first).await, stats(&node, &second).await),
        ((0, 0), (1, 1))
    );
}

/// What only several nodes see. Leases are aged by hand: thirty seconds are long for a test.
mod leases {
    use super::*;
    use redis::AsyncCommands;

    const KIND: Kind = Kind::Redis(12);

    async fn expire_lease(channel: &ChannelName, node: &TestNode) {
        let name = key("", channel);
        let leases = format!("{}:pr:leases", name.split("::").next().unwrap());
        let mut raw = raw_redis(KIND).await;
        let _: () = raw.zadd(leases, node.id.as_str(), 1).await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn members_of_a_dead_node_leave() {
        let (dead, alive) = two_nodes(KIND).await;
        let channel = channel("dead");
        alive.parts.broker.subscribe(&channel, None).await.unwrap();
        // A value of more than 127 bytes needs two for its length inside the bell.
        let long = "x".repeat(300);
        for user in ["ann", "bob", "", long.as_str()] {
            dead.parts
                .presence
                .add(&channel, client(user))
                .await
                .unwrap();
        }
        alive
            .parts
            .presence
            .add(&channel, client("cy"))
            .await
            .unwrap();
        dead.die();
        expire_lease(&channel, &dead).await;
        eventually("four leaves", || alive.seen.lines(&channel).len() >= 4).await;
        let lines = alive.seen.lines(&channel);
        assert_eq!(lines.len(), 4, "each leave is told once: {lines:?}");
        for user in ["ann", "bob", "", long.as_str()] {
            assert!(lines.contains(&Line::Leave(user.to_owned())));
        }
        assert_eq!(users(&alive, &channel).await, ["cy".to_owned()].into());
        assert_eq!(stats(&alive, &channel).await, (1, 1));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn members_of_a_node_that_was_taken_for_dead_come_back() {
        let (back, other) = two_nodes(KIND).await;
        let channel = channel("back");
        other.parts.broker.subscribe(&channel, None).await.unwrap();
        let (ann, bob) = (client("ann"), client("bob"));
        back.parts
            .presence
            .add(&channel, Arc::clone(&ann))
            .await
            .unwrap();
        back.parts
            .presence
            .add(&channel, Arc::clone(&bob))
            .await
            .unwrap();
        back.parts
            .presence
            .remove(&channel, bob.client)
            .await
            .unwrap();
        // As if another node had swept it while it was cut off.
        expire_lease(&channel, &back).await;
        let mut raw = raw_redis(KIND).await;
        let _: () = raw.del(key("pr:m", &channel)).await.unwrap();
        let _: () = raw.del(key("pr:u", &channel)).await.unwrap();
        assert_eq!(stats(&other, &channel).await, (0, 0));
        eventually("its join is told", || {
            other
                .seen
                .lines(&channel)
                .contains(&Line::Join("ann".to_owned()))
        })
        .await;
        assert_eq!(other.parts.presence.members(&channel).await.unwrap(), [ann]);
        assert_eq!(stats(&other, &channel).await, (1, 1));
    }
}
