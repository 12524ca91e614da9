//! Commands to all nodes and the registry of nodes: the suite that both implementations pass.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by panicking"
)]

mod between;

use between::*;
use gateway::control::{ControlCommand, NodeInfo};
use shared::ids::NodeId;

on_both_brokers! {13: every_node_obeys, live_nodes_are_listed
}

fn disconnect(user: &str) -> ControlCommand {
    ControlCommand::Disconnect {
        user: user.to_owned(),
        client: None,
        whitelist: vec!["w".to_owned()],
        code: 3503,
        reason: "force disconnect".to_owned(),
    }
}

/// Other tests of this file share the stream: what concerns one test names its own user.
fn obeyed(node: &TestNode, users: &[&str]) -> Vec<ControlCommand> {
    let is_ours = |command: &ControlCommand| match command {
        ControlCommand::Disconnect { user, .. }
        | ControlCommand::Unsubscribe { user, .. }
        | ControlCommand::Membership { user, .. } => users.contains(&user.as_str()),
    };
    node.seen.commands().into_iter().filter(is_ours).collect()
}

async fn every_node_obeys(kind: Kind) {
    let (here, there) = two_nodes(kind).await;
    let user = NodeId::random().to_string();
    let unsubscribe = ControlCommand::Unsubscribe {
        user: user.clone(),
        channel: "chat:1".to_owned(),
        client: Some("c".to_owned()),
    };
    let commands = [disconnect(&user), unsubscribe, disconnect(&user)];
    for command in &commands {
        here.parts.control.broadcast(command.clone()).await.unwrap();
    }
    for node in [&here, &there] {
        eventually("three commands", || obeyed(node, &[&user]).len() >= 3).await;
        assert_eq!(obeyed(node, &[&user]), commands);
    }
}

async fn live_nodes_are_listed(kind: Kind) {
    let (here, there) = two_nodes(kind).await;
    let info = |node: &TestNode, num_clients| NodeInfo {
        uid: node.id.clone(),
        name: "host_8000".to_owned(),
        version: "0.1.0".to_owned(),
        num_clients,
        num_users: 1,
        num_channels: 2,
        num_subs: 3,
        uptime: 4,
    };
    here.parts.control.heartbeat(&info(&here, 1)).await.unwrap();
    here.parts.control.heartbeat(&info(&here, 2)).await.unwrap();
    there
        .parts
        .control
        .heartbeat(&info(&there, 2))
        .await
        .unwrap();
    let nodes = there.parts.control.nodes().await.unwrap();
    assert!(nodes.contains(&info(&here, 2)), "{nodes:?}");
    assert!(nodes.contains(&info(&there, 2)), "{nodes:?}");
    assert_eq!(nodes.iter().filter(|node| node.uid == here.id).count(), 1);
}

/// What only a network can do.
mod redis_faults {
    use super::*;
    use redis::AsyncCommands;

    const KIND: Kind = Kind::Redis(14);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_that_was_cut_off_reads_what_it_missed() {
        let (here, there) = two_nodes(KIND).await;
        let user = NodeId::random().to_string();
        let mut sent = 0;
        for _ in 0..3 {
            kill(KIND, &there, "control").await;
            for _ in 0..5 {
                here.parts
                    .control
                    .broadcast(disconnect(&user))
                    .await
                    .unwrap();
                sent += 1;
            }
            eventually("all are obeyed", || obeyed(&there, &[&user]).len() >= sent).await;
        }
        assert_eq!(obeyed(&there, &[&user]).len(), sent);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_that_stopped_is_forgotten() {
        let (here, dead) = two_nodes(KIND).await;
        let info = |node: &TestNode| NodeInfo {
            uid: node.id.clone(),
            name: "host".to_owned(),
            version: "0.1.0".to_owned(),
            num_clients: 0,
            num_users: 0,
            num_channels: 0,
            num_subs: 0,
            uptime: 0,
        };
        dead.parts.control.heartbeat(&info(&dead)).await.unwrap();
        let mut raw = raw_redis(KIND).await;
        // As if its last heartbeat were long ago.
        let _: () = raw
            .zadd("wyd:{nodes}:live", dead.id.as_str(), 1)
            .await
            .unwrap();
        let nodes = here.parts.control.nodes().await.unwrap();
        assert!(nodes.iter().all(|node| node.uid != dead.id));
        here.parts.control.heartbeat(&info(&here)).await.unwrap();
        let is_kept: bool = raw
            .hexists("wyd:{nodes}:info", dead.id.as_str())
            .await
            .unwrap();
        assert!(!is_kept, "the registry does not grow");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_command_of_a_later_version_harms_nobody() {
        let node = node(KIND).await;
        let user = NodeId::random().to_string();
        let mut raw = raw_redis(KIND).await;
        for value in [&b"\x02xyz"[..], b"\x01\x0a\x02{}", b"garbage", b""] {
            let _: String = redis::cmd("XADD")
                .arg("wyd:control")
                .arg("*")
                .arg("p")
                .arg(value)
                .query_async(&mut raw)
                .await
                .unwrap();
        }
        node.parts
            .control
            .broadcast(disconnect(&user))
            .await
            .unwrap();
        eventually("the command is obeyed", || {
            obeyed(&node, &[&user]).len() == 1
        })
        .await;
    }
}
