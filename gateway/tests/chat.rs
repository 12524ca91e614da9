//! The chat part over both of its faces: who may do what, and what is told to whom.
#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    clippy::string_slice,
    reason = "a test that cannot go on panics, and its helpers are shared with other suites"
)]

mod chat_world;
mod support;

use std::time::Duration;

use chat_world::{ChatNode, chat_config, start};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use shared::events::{PublicationEvent, PublicationKind};
use shared::ids::{ChannelName, MessageId};
use shared::protocol::Tags;
use support::{RawClient, http, token};
use tokio::time::Instant;

const NULL: Value = Value::Null;

async fn node() -> ChatNode {
    start(chat_config()).await
}

/// Makes a group of `ann`, where she and these are.
async fn group(node: &ChatNode, channel: &str, others: &[&str]) {
    node.done(
        "ann",
        "POST /v1/channels",
        json!({"channel": channel, "name": "Group"}),
    )
    .await;
    for other in others {
        let line = format!("POST /v1/channels/{channel}/join");
        node.done(other, &line, NULL).await;
    }
}

#[tokio::test]
async fn only_members_subscribe_publish_and_read() {
    let node = node().await;
    group(&node, "open:1", &["ben"]).await;
    let mut ben = node.connect("ben").await;
    assert_eq!(ben.subscribe("open:1").await, Ok(()));
    assert_eq!(ben.publish("open:1", "hi").await, Ok(()));
    let mut eve = node.connect("eve").await;
    assert_eq!(eve.subscribe("open:1").await, Err(103));
    assert_eq!(eve.publish("open:1", "hi").await, Err(103));
    for command in [
        json!({"history": {"channel": "open:1", "limit": 10}}),
        json!({"presence": {"channel": "open:1"}}),
        json!({"presence_stats": {"channel": "open:1"}}),
    ] {
        let reply = eve.call(command.clone()).await;
        assert_eq!(reply["error"]["code"], 103, "{command}: {reply}");
        let reply = ben.call(command.clone()).await;
        assert!(reply["error"].is_null(), "{command}: {reply}");
    }
    let send = json!({"channel": "open:1", "data": 1});
    assert_eq!(eve.rpc("message.send", send.clone()).await, Err(103));
    assert!(ben.rpc("message.send", send).await.unwrap()["offset"].is_u64());
    let line = "POST /v1/channels/open:1/messages";
    assert_eq!(node.refused("eve", line, json!({"data": 1})).await, 403);
    assert_eq!(
        node.refused("eve", "GET /v1/channels/open:1", NULL).await,
        403
    );
    let line = "GET /v1/channels/open:1/members";
    assert_eq!(node.refused("eve", line, NULL).await, 403);
}

#[tokio::test]
async fn a_subscription_token_does_not_replace_membership() {
    let node = node().await;
    group(&node, "open:1", &[]).await;
    let mut eve = node.connect("eve").await;
    let token = token(&json!({"sub": "eve", "channel": "open:1"}));
    let command = json!({"subscribe": {"channel": "open:1", "token": token}});
    assert_eq!(eve.call(command).await["error"]["code"], 103);
}

#[tokio::test]
async fn a_connection_token_puts_members_only_on_its_channels() {
    let node = node().await;
    group(&node, "open:1", &[]).await;
    group(&node, "open:2", &["ben"]).await;
    let mut ben = RawClient::open(node.address()).await;
    let claims = json!({"sub": "ben", "channels": ["open:1", "open:2"]});
    let reply = ben
        .call(json!({"connect": {"token": token(&claims)}}))
        .await;
    let subs = reply["connect"]["subs"].as_object().unwrap();
    assert_eq!(subs.keys().collect::<Vec<_>>(), ["open:2"]);
    // What was left out is no subscription: joining makes it one.
    node.done("ben", "POST /v1/channels/open:1/join", NULL)
        .await;
    assert_eq!(ben.subscribe("open:1").await, Ok(()));
    node.api(
        "members_remove",
        json!({"channel": "open:2", "user": "ben"}),
    )
    .await;
    assert_eq!(ben.unsubscribed("open:2").await, 2000);
}

#[tokio::test]
async fn a_removed_member_is_taken_off_and_cannot_come_back() {
    let node = node().await;
    group(&node, "invite:1", &[]).await;
    node.api(
        "members_add",
        json!({"channel": "invite:1", "users": ["ben", "cid"]}),
    )
    .await;
    let mut ann = node.connect("ann").await;
    let mut ben = node.connect("ben").await;
    for client in [&mut ann, &mut ben] {
        assert_eq!(client.subscribe("invite:1").await, Ok(()));
    }
    let line = "DELETE /v1/channels/invite:1/members/ben";
    assert_eq!(node.refused("cid", line, NULL).await, 403);
    node.done("ann", line, NULL).await;
    assert_eq!(ben.unsubscribed("invite:1").await, 2000);
    assert_eq!(ben.subscribe("invite:1").await, Err(103));
    assert_eq!(ben.publish("invite:1", "still here").await, Err(103));
    let line = "POST /v1/channels/invite:1/join";
    assert_eq!(node.refused("ben", line, NULL).await, 403);
    // Nobody else noticed.
    assert_eq!(ann.publish("invite:1", "he is gone").await, Ok(()));
}

#[tokio::test]
async fn the_namespace_says_who_may_join() {
    let node = node().await;
    let create = json!({"channel": "server:1"});
    assert_eq!(node.refused("ann", "POST /v1/channels", create).await, 403);
    let added = node
        .api(
            "members_add",
            json!({"channel": "server:1", "user": "ann", "role": "owner"}),
        )
        .await;
    assert_eq!(added["result"]["added"], 1);
    assert_eq!(
        node.refused("ben", "POST /v1/channels/server:1/join", NULL)
            .await,
        403
    );
    let invite = "POST /v1/channels/server:1/invitations";
    assert_eq!(node.refused("ann", invite, NULL).await, 403);
    let mut ann = node.connect("ann").await;
    assert_eq!(ann.subscribe("server:1").await, Ok(()));

    group(&node, "invite:1", &[]).await;
    let join = "POST /v1/channels/invite:1/join";
    assert_eq!(node.refused("ben", join, NULL).await, 403);
    let invite = "POST /v1/channels/invite:1/invitations";
    let made = node.done("ann", invite, json!({"uses": 1})).await;
    let invitation = json!({"invitation": made["invitation"]});
    assert_eq!(node.refused("ben", invite, NULL).await, 403);
    node.done("ben", join, invitation.clone()).await;
    node.done("ben", join, invitation.clone()).await;
    assert_eq!(node.refused("cid", join, invitation).await, 403);
    node.done("ann", invite, json!({"user": "cid"})).await;
    assert_eq!(node.refused("dan", join, NULL).await, 403);
    node.done("cid", join, NULL).await;

    // Open to all: whoever comes first makes the channel.
    let mut eve = node.connect("eve").await;
    let joined = eve.rpc("channel.join", json!({"channel": "open:9"})).await;
    assert_eq!(joined.unwrap()["created_by"], "eve");
    assert_eq!(eve.subscribe("open:9").await, Ok(()));
}

#[tokio::test]
async fn roles_decide_who_may_change_what() {
    let node = node().await;
    group(&node, "open:1", &["ben", "cid"]).await;
    let update = "PATCH /v1/channels/open:1";
    let name = json!({"name": "New"});
    assert_eq!(node.refused("ben", update, name.clone()).await, 403);
    let role = |user: &str| format!("PUT /v1/channels/open:1/members/{user}/role");
    let moderator = json!({"role": "moderator"});
    assert_eq!(
        node.refused("ben", &role("ben"), moderator.clone()).await,
        403
    );
    node.done("ann", &role("ben"), moderator.clone()).await;
    let channel = node.done("ben", update, name).await;
    assert_eq!(
        (&channel["name"], &channel["picture"]),
        (&json!("New"), &json!(""))
    );
    assert_eq!(
        node.refused("ben", &role("cid"), moderator.clone()).await,
        403
    );
    let kick = |user: &str| format!("DELETE /v1/channels/open:1/members/{user}");
    assert_eq!(node.refused("ben", &kick("ann"), NULL).await, 403);
    node.done("ben", &kick("cid"), NULL).await;
    // A channel keeps an owner.
    assert_eq!(node.refused("ann", &role("ann"), moderator).await, 409);
    assert_eq!(
        node.refused("ann", &role("eve"), json!({"role": "owner"}))
            .await,
        404
    );
    node.done("ann", "POST /v1/channels/open:1/leave", NULL)
        .await;
    let members = node
        .done("ben", "GET /v1/channels/open:1/members", NULL)
        .await;
    assert_eq!(members["members"][0]["user"], "ben");
    assert_eq!(members["members"][0]["role"], "owner");
    let set = json!({"channel": "open:1", "user": "ben", "role": "nonsense"});
    assert_eq!(
        node.api("members_set_role", set).await["error"]["code"],
        107
    );
}

#[tokio::test]
async fn a_pair_has_one_direct_chat_and_a_block_silences_it() {
    let node = node().await;
    let mut ann = node.connect("ann").await;
    let mut ben = node.connect("ben").await;
    let open = "POST /v1/direct";
    let direct = node.done("ann", open, json!({"user": "ben"})).await;
    let again = node.done("ben", open, json!({"user": "ann"})).await;
    assert_eq!(direct["channel"], again["channel"]);
    assert_eq!(direct["kind"], "direct");
    let channel = direct["channel"].as_str().unwrap();
    for client in [&mut ann, &mut ben] {
        assert_eq!(client.subscribe(channel).await, Ok(()));
        assert_eq!(client.publish(channel, "hi").await, Ok(()));
    }
    let join = format!("POST /v1/channels/{channel}/join");
    assert_eq!(node.refused("eve", &join, NULL).await, 403);
    let leave = format!("POST /v1/channels/{channel}/leave");
    assert_eq!(node.refused("ann", &leave, NULL).await, 403);
    assert_eq!(node.refused("ann", open, json!({"user": "ann"})).await, 400);

    node.done("ann", "PUT /v1/blocks/ben", NULL).await;
    assert_eq!(ben.publish(channel, "hello?").await, Err(103));
    let send = json!({"channel": channel, "data": 1});
    assert_eq!(ben.rpc("message.send", send).await, Err(103));
    assert_eq!(node.refused("ben", open, json!({"user": "ann"})).await, 403);
    assert_eq!(ann.publish(channel, "bye").await, Ok(()));
    let blocks = node.done("ann", "GET /v1/blocks", NULL).await;
    assert_eq!(blocks["users"][0]["user"], "ben");
    node.done("ann", "DELETE /v1/blocks/ben", NULL).await;
    assert_eq!(ben.publish(channel, "thank you").await, Ok(()));
    // Nobody makes a group under a direct chat's name.
    let create = json!({"channel": "open:dm.0123"});
    assert_eq!(node.refused("eve", "POST /v1/channels", create).await, 400);
    assert_eq!(
        node.refused("eve", "POST /v1/channels/open:dm.0123/join", NULL)
            .await,
        400
    );
}

#[tokio::test]
async fn creates_are_idempotent_and_have_limits() {
    let mut config = chat_config();
    config.chat.channels_per_user_max = 2;
    config.chat.members_per_channel_max = 3;
    config.chat.invitations_per_channel_max = 1;
    config.chat.blocks_per_user_max = 1;
    let node = start(config).await;
    let create = "POST /v1/channels";
    let first = node
        .done("ann", create, json!({"channel": "open:1", "name": "A"}))
        .await;
    let again = node
        .done("ann", create, json!({"channel": "open:1", "name": "B"}))
        .await;
    assert_eq!(first, again);
    assert_eq!(
        node.refused("ben", create, json!({"channel": "open:1"}))
            .await,
        409
    );
    node.done("ann", create, json!({"channel": "open:2"})).await;
    assert_eq!(
        node.refused("ann", create, json!({"channel": "open:3"}))
            .await,
        422
    );
    for user in ["ben", "cid"] {
        node.done(user, "POST /v1/channels/open:1/join", NULL).await;
    }
    assert_eq!(
        node.refused("dan", "POST /v1/channels/open:1/join", NULL)
            .await,
        422
    );
    let invite = "POST /v1/channels/open:1/invitations";
    node.done("ann", invite, NULL).await;
    assert_eq!(node.refused("ann", invite, NULL).await, 422);
    node.done("ann", "PUT /v1/blocks/ben", NULL).await;
    node.done("ann", "PUT /v1/blocks/ben", NULL).await;
    assert_eq!(node.refused("ann", "PUT /v1/blocks/cid", NULL).await, 422);
}

#[tokio::test]
async fn lists_are_paged_by_cursors() {
    let node = node().await;
    for number in 0..5 {
        group(&node, &format!("open:{number}"), &["ben"]).await;
    }
    let mut names = Vec::new();
    let mut query = "limit=2".to_owned();
    loop {
        let page = node
            .done("ben", &format!("GET /v1/channels?{query}"), NULL)
            .await;
        let channels = page["channels"].as_array().unwrap();
        assert!(channels.len() <= 2);
        names.extend(
            channels
                .iter()
                .map(|one| one["channel"].as_str().unwrap().to_owned()),
        );
        let Some(cursor) = page["cursor"].as_str() else {
            break;
        };
        query = format!("limit=2&cursor={cursor}");
    }
    assert_eq!(names, ["open:0", "open:1", "open:2", "open:3", "open:4"]);
    let line = "GET /v1/channels?cursor=%3F%3F";
    assert_eq!(node.refused("ben", line, NULL).await, 400);
    let mut ben = node.connect("ben").await;
    let page = ben.rpc("channel.list", json!({"limit": 1})).await.unwrap();
    assert_eq!(page["channels"][0]["role"], "member");
}

#[tokio::test]
async fn messages_are_sent_once_over_rest() {
    let node = node().await;
    group(&node, "open:1", &["ben"]).await;
    let mut ben = node.connect("ben").await;
    assert_eq!(ben.subscribe("open:1").await, Ok(()));
    let token = token(&json!({"sub": "ann", "info": {"name": "Ann"}}));
    let head = format!(
        "POST /v1/channels/open%3A1/messages HTTP/1.1\r\nAuthorization: Bearer {token}\r\n\
         Idempotency-Key: k1"
    );
    let send = async |body: &'static str| {
        let (status, answer) = http(node.address(), &head, body).await;
        (status, serde_json::from_str::<Value>(&answer).unwrap())
    };
    let (status, first) = send("{\"data\": {\"text\": 1.50}}").await;
    assert_eq!(status, 200, "{first}");
    let (_, second) = send("{\"data\": {\"text\": 1.50}}").await;
    assert_eq!(first, second);
    assert_eq!(send("{\"data\": 2}").await.0, 409);
    let push = ben.push().await;
    let publication = &push["push"]["pub"];
    assert_eq!(publication["offset"], first["offset"]);
    assert_eq!(publication["info"]["user"], "ann");
    assert_eq!(publication["info"]["conn_info"]["name"], "Ann");
    let history = ben
        .call(json!({"history": {"channel": "open:1", "limit": 10}}))
        .await;
    assert_eq!(
        history["history"]["publications"].as_array().unwrap().len(),
        1
    );
}

#[tokio::test]
async fn what_cannot_be_understood_is_a_problem() {
    let node = node().await;
    group(&node, "open:1", &[]).await;
    for (line, body, status) in [
        ("POST /v1/channels", json!([]), 400),
        ("POST /v1/channels", json!({}), 400),
        ("POST /v1/channels", json!({"channel": 7}), 400),
        ("POST /v1/channels", json!({"channel": "nowhere:1"}), 404),
        ("POST /v1/channels", json!({"channel": "open:"}), 400),
        ("POST /v1/channels", json!({"channel": "$open:1"}), 400),
        (
            "POST /v1/channels",
            json!({"channel": "open:x", "name": "x".repeat(129)}),
            400,
        ),
        (
            "POST /v1/channels",
            json!({"channel": "open:x", "name": "a\u{0}"}),
            400,
        ),
        ("POST /v1/channels", json!({"channel": "closed:1"}), 404),
        (
            "PATCH /v1/channels/open:1",
            json!({"channel": "open:2"}),
            400,
        ),
        ("PUT /v1/channels/open:1/mute", json!({"until": -1}), 400),
        ("PUT /v1/channels/open:1/mute", json!({"until": "x"}), 400),
        (
            "PUT /v1/channels/open:1/read",
            json!({"offset": u64::MAX}),
            400,
        ),
        ("PUT /v1/devices/t", json!({"platform": "toaster"}), 400),
        ("PUT /v1/devices/%00", json!({"platform": "ios"}), 400),
        ("PUT /v1/devices/%FF", json!({"platform": "ios"}), 400),
        ("GET /v1/channels?limit=x", NULL, 400),
        ("GET /v1/channels?nonsense=1", NULL, 400),
        ("GET /v1/nonsense", NULL, 404),
        ("DELETE /v1/channels", NULL, 405),
        (
            "POST /v1/channels/open:1/messages",
            json!({"data": "x".repeat(70_000)}),
            413,
        ),
        (
            "POST /v1/channels",
            json!({"name": "x".repeat(2_000_000)}),
            413,
        ),
    ] {
        let (answered, problem) = node.rest("ann", line, body).await;
        assert_eq!(answered, status, "{line}: {problem}");
        assert_eq!(problem["type"], "about:blank", "{line}: {problem}");
    }
    for authorization in ["", "Bearer nonsense", "Basic eA=="] {
        let head = format!("GET /v1/channels HTTP/1.1\r\nAuthorization: {authorization}");
        assert_eq!(
            http(node.address(), &head, "").await.0,
            401,
            "{authorization}"
        );
    }
    let anonymous = token(&json!({}));
    let head = format!("GET /v1/channels HTTP/1.1\r\nAuthorization: Bearer {anonymous}");
    assert_eq!(http(node.address(), &head, "").await.0, 401);
    let mut ann = node.connect("ann").await;
    assert_eq!(ann.rpc("channel.create", json!({})).await, Err(107));
    assert_eq!(ann.rpc("nonsense", json!({})).await, Err(108));
    assert_eq!(ann.rpc("channel.mute", NULL).await, Err(107));
}

#[tokio::test]
async fn devices_and_read_positions_are_the_users_own() {
    let node = node().await;
    group(&node, "open:1", &["ben"]).await;
    let device = json!({"platform": "android", "app_version": "1"});
    node.done("ann", "PUT /v1/devices/tok%3Aen", device.clone())
        .await;
    let remove = "DELETE /v1/devices/tok%3Aen";
    assert_eq!(node.done("ben", remove, NULL).await["removed"], false);
    node.done("ben", "PUT /v1/devices/tok%3Aen", device).await;
    assert_eq!(node.done("ann", remove, NULL).await["removed"], false);
    assert_eq!(node.done("ben", remove, NULL).await["removed"], true);
    let mut ben = node.connect("ben").await;
    for (offset, expected) in [(5, 5), (3, 5), (8, 8)] {
        let marked = ben.rpc("read.mark", json!({"channel": "open:1", "offset": offset}));
        assert_eq!(marked.await.unwrap()["offset"], expected);
    }
    let mut eve = node.connect("eve").await;
    let mark = json!({"channel": "open:1", "offset": 1});
    assert_eq!(eve.rpc("read.mark", mark).await, Err(103));
    node.done("ben", "PUT /v1/channels/open:1/mute", json!({"until": 99}))
        .await;
    let page = node.done("ben", "GET /v1/channels", NULL).await;
    assert_eq!(page["channels"][0]["muted_until"], 99);
    assert_eq!(page["channels"][0]["read_offset"], 8);
}

#[tokio::test]
async fn unread_is_what_others_wrote_above_the_read_position() {
    let node = node().await;
    group(&node, "kept:1", &["ben"]).await;
    // Above every offset that a channel of today begins at.
    let first = 1 << 52;
    let event = |number: u64, user: &str| PublicationEvent {
        id: MessageId::now(),
        kind: PublicationKind::Message,
        channel: ChannelName::new("kept:1").unwrap(),
        epoch: "e".into(),
        offset: first + number,
        user: user.to_owned(),
        info: None,
        data: RawValue::from_string("1".to_owned()).unwrap(),
        tags: Tags::new(),
        published_at_ms: 1,
    };
    let old = PublicationEvent {
        offset: 1,
        ..event(0, "ann")
    };
    let said = [old, event(1, "ann"), event(2, "ben"), event(3, "ann")];
    node.archive.append(&said, &[]).await.unwrap();
    let unread = async |user: &'static str| {
        let page = node.done(user, "GET /v1/unread", NULL).await;
        page["channels"][0]["unread"].as_u64()
    };
    // What was said before one came is not unread, nor is what one wrote.
    assert_eq!(unread("ben").await, Some(2));
    assert_eq!(unread("ann").await, Some(1));
    let mark = json!({"offset": first + 1});
    node.done("ben", "PUT /v1/channels/kept:1/read", mark).await;
    assert_eq!(unread("ben").await, Some(1));
    let mark = json!({"offset": first + 3});
    node.done("ben", "PUT /v1/channels/kept:1/read", mark).await;
    assert_eq!(unread("ben").await, None);
}

/// Two nodes on one Redis and one database: what one is told holds on the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_is_taken_off_on_every_node() {
    let redis = std::env::var("WYD_TEST_REDIS_URL")
        .expect("WYD_TEST_REDIS_URL is not set: run ./test services");
    let mut config = chat_config();
    config.broker.redis_url = Some(format!("{}/15", redis.trim_end_matches('/')).into());
    // What is remembered must be forgotten because it was told, not because time passed.
    config.chat.membership_cache_ttl = Duration::from_secs(60);
    let here = start(config.clone()).await;
    let there = here.another(config).await;
    let channel = format!("invite:{}", MessageId::now());
    let members = json!({"channel": channel, "users": ["ann", "ben"]});
    here.api("members_add", members).await;
    let mut ann = here.connect("ann").await;
    let mut ben = there.connect("ben").await;
    for client in [&mut ann, &mut ben] {
        assert_eq!(client.subscribe(&channel).await, Ok(()));
        assert_eq!(client.publish(&channel, "hi").await, Ok(()));
    }
    let removed = Instant::now();
    here.api("members_remove", json!({"channel": channel, "user": "ben"}))
        .await;
    assert_eq!(ben.unsubscribed(&channel).await, 2000);
    assert!(removed.elapsed() < Duration::from_secs(5));
    assert_eq!(ben.publish(&channel, "still here").await, Err(103));
    assert_eq!(ben.subscribe(&channel).await, Err(103));
    // A new member is let in at once by the node that has just refused it.
    here.api("members_add", json!({"channel": channel, "user": "ben"}))
        .await;
    assert_eq!(ben.subscribe(&channel).await, Ok(()));
}

#[tokio::test]
async fn the_document_lists_every_operation() {
    let node = node().await;
    let (status, text) = http(node.address(), "GET /v1/openapi.json HTTP/1.1", "").await;
    assert_eq!(status, 200);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    let mut methods = Vec::new();
    for path in document["paths"].as_object().unwrap().values() {
        for operation in path.as_object().unwrap().values() {
            methods.push(operation["operationId"].as_str().unwrap());
            assert!(operation["responses"]["200"].is_object());
        }
    }
    for method in [
        "device.register",
        "device.remove",
        "channel.create",
        "channel.update",
        "channel.join",
        "channel.leave",
        "channel.mute",
        "channel.list",
        "channel.members",
        "channel.invite",
        "channel.direct",
        "user.block",
        "user.unblock",
        "message.send",
        "message.list",
        "read.mark",
        "read.unread",
    ] {
        assert!(methods.contains(&method), "{method}");
    }
    // Every reference leads somewhere.
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    let send = &document["paths"]["/v1/channels/{channel}/messages"]["post"];
    let names: Vec<&str> = send["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|parameter| parameter["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["channel", "Idempotency-Key"]);
}
