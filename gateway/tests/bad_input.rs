//! What peers may say wrong: each gets its code, and nobody else notices.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::string_slice,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

mod support;

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use support::{RawClient, Received, config, http, masked, start, stop, token};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Two people who talk, to see that nothing disturbs them.
struct Bystanders {
    ann: RawClient,
    bob: RawClient,
    said: u64,
}

impl Bystanders {
    async fn arrive(address: SocketAddr) -> Self {
        let mut ann = RawClient::connect(address, "ann").await;
        let mut bob = RawClient::connect(address, "bob").await;
        for client in [&mut ann, &mut bob] {
            let reply = client
                .call(json!({"subscribe": {"channel": "open:talk"}}))
                .await;
            assert!(reply["error"].is_null(), "{reply}");
        }
        Self { ann, bob, said: 0 }
    }

    async fn talk(&mut self) {
        self.said += 1;
        let publish = json!({"publish": {"channel": "open:talk", "data": {"n": self.said}}});
        let reply = self.ann.call(publish).await;
        assert!(reply["error"].is_null(), "{reply}");
        for client in [&mut self.ann, &mut self.bob] {
            let push = client.push().await;
            assert_eq!(push["push"]["pub"]["data"]["n"], json!(self.said), "{push}");
        }
    }
}

async fn first_words_close_with(address: SocketAddr, words: &str, code: u16) {
    let mut client = RawClient::open(address).await;
    client.text(words).await;
    assert_eq!(client.closed().await.0, code, "{words:.60}");
}

#[tokio::test(flavor = "multi_thread")]
async fn words_that_are_no_protocol_close_with_3501() {
    let node = start(config()).await;
    let address = node.public_addr();
    let mut bystanders = Bystanders::arrive(address).await;
    for words in [
        "",
        "\n",
        "{oops",
        "[]",
        "null",
        "{}",
        r#"{"id":1}"#,
        r#"{"id":1,"ping":{}}"#,
        r#"{"id":1,"subscribe":{"channel":"open:talk"}}"#,
        r#"{"id":0,"connect":{}}"#,
        r#"{"id":1,"connect":{}}"#,
        r#"{"id":-1,"connect":{}}"#,
        r#"{"id":1,"connect":7}"#,
    ] {
        first_words_close_with(address, words, 3501).await;
        bystanders.talk().await;
    }
    let deep = format!(
        r#"{{"id":1,"rpc":{{"data":{}1{}}}}}"#,
        "[".repeat(20_000),
        "]".repeat(20_000)
    );
    first_words_close_with(address, &deep, 3501).await;
    bystanders.talk().await;
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_session_may_still_say_wrong_things() {
    let node = start(config()).await;
    let address = node.public_addr();
    let mut bystanders = Bystanders::arrive(address).await;
    let tok = token(&json!({"sub": "eve"}));
    let again = json!({"id": 2, "connect": {"token": tok}}).to_string();
    for (words, code) in [
        ("{}", 3501),
        ("{}\n\n{}", 3501),
        (again.as_str(), 3501),
        (r#"{"id":3,"refresh":{}}"#, 3501),
        (r#"{"id":3,"refresh":{"token":"garbage"}}"#, 3500),
        (
            r#"{"id":3,"subscribe":{"channel":"open:x","delta":"zip"}}"#,
            3501,
        ),
        (r#"{"send":{"data":1}}"#, 3508),
    ] {
        let mut eve = RawClient::connect(address, "eve").await;
        eve.text(words).await;
        assert_eq!(eve.closed().await.0, code, "{words}");
        bystanders.talk().await;
    }
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_answered_with_their_error() {
    let node = start(config()).await;
    let address = node.public_addr();
    let mut eve = RawClient::connect(address, "eve").await;
    let long = format!("open:{}", "x".repeat(251));
    for (command, code) in [
        (json!({"subscribe": {"channel": "nowhere:1"}}), 102),
        (json!({"subscribe": {"channel": "1"}}), 102),
        (json!({"subscribe": {"channel": ""}}), 107),
        (json!({"subscribe": {"channel": long}}), 107),
        (json!({"subscribe": {"channel": "closed:1"}}), 103),
        (json!({"subscribe": {"channel": "$open:1"}}), 103),
        (
            json!({"subscribe": {"channel": "open:1", "token": "garbage"}}),
            103,
        ),
        (json!({"subscribe": {"channel": "open:1", "type": 1}}), 108),
        (json!({"publish": {"channel": "open:1", "data": 1}}), 103),
        (json!({"publish": {"channel": "open:1"}}), 103),
        (json!({"presence": {"channel": "open:1"}}), 103),
        (json!({"presence": {"channel": "closed:1"}}), 108),
        (json!({"history": {"channel": "open:1"}}), 103),
        (json!({"rpc": {"method": "nothing"}}), 108),
        (json!({"rpc": {"method": "message.send"}}), 107),
        (json!({"rpc": {"method": "message.send", "data": [1]}}), 107),
        (
            json!({"rpc": {"method": "message.send", "data": {"channel": "open:1", "data": 1}}}),
            103,
        ),
        (json!({"sub_refresh": {"channel": "open:1"}}), 103),
    ] {
        let reply = eve.call(command.clone()).await;
        assert_eq!(reply["error"]["code"], json!(code), "{command} -> {reply}");
    }
    let reply = eve
        .call(json!({"unsubscribe": {"channel": "open:1"}}))
        .await;
    assert_eq!(reply, json!({"id": 7, "unsubscribe": {}}));
    eve.call(json!({"subscribe": {"channel": "open:1"}})).await;
    let reply = eve.call(json!({"subscribe": {"channel": "open:1"}})).await;
    assert_eq!(reply["error"]["code"], json!(105));
    let other = token(&json!({"sub": "ann", "channel": "open:2"}));
    eve.text(&json!({"id": 9, "subscribe": {"channel": "open:2", "token": other}}).to_string())
        .await;
    assert_eq!(eve.closed().await.0, 3500);
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_tokens_do_not_get_in() {
    let node = start(config()).await;
    let address = node.public_addr();
    for wrong in [
        "garbage".to_owned(),
        format!("{}x", token(&json!({"sub": "eve"}))),
        token(&json!({"sub": "eve", "channel": "open:1"})),
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJldmUifQ.".to_owned(),
    ] {
        let connect = json!({"id": 1, "connect": {"token": wrong}}).to_string();
        first_words_close_with(address, &connect, 3500).await;
    }
    let mut late = RawClient::open(address).await;
    let reply = late
        .call(json!({"connect": {"token": token(&json!({"sub": "eve", "exp": 1}))}}))
        .await;
    assert_eq!(reply["error"]["code"], json!(109));
    let mut lost = RawClient::open(address).await;
    let claims = json!({"sub": "eve", "channels": ["nowhere:1"]});
    let reply = lost
        .call(json!({"connect": {"token": token(&claims)}}))
        .await;
    assert_eq!(reply["error"]["code"], json!(102));
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_frames_get_websocket_codes() {
    let mut config = config();
    config.websocket.message_size_limit = 1000;
    config.websocket.fragments_max = 8;
    config.websocket.message_timeout = Duration::from_millis(300);
    let node = start(config).await;
    let address = node.public_addr();
    let mut bystanders = Bystanders::arrive(address).await;
    let close_after = |frames: Vec<Vec<u8>>| async move {
        let mut client = RawClient::open(address).await;
        for frame in frames {
            drop(client.socket.write_all(&frame).await);
        }
        client.closed().await.0
    };
    let cases = [
        (vec![masked(0x81, &[b'x'; 1001])], 1009),
        (vec![masked(0x81, &[b'x'; 70_000])], 1009),
        (
            vec![masked(0x01, &[b'x'; 600]), masked(0x00, &[b'x'; 600])],
            1009,
        ),
        (
            vec![masked(0x01, b"x"); 1]
                .into_iter()
                .chain(vec![masked(0x00, b""); 9])
                .collect(),
            1009,
        ),
        (vec![masked(0xc1, b"x")], 1002),
        (vec![masked(0x83, b"x")], 1002),
        (vec![masked(0x80, b"x")], 1002),
        (vec![masked(0x09, b"x")], 1002),
        (vec![vec![0x81, 1, b'x']], 1002),
        (vec![masked(0x88, b"\x03\xed")], 1002),
        (vec![masked(0x81, b"\xff\xfe")], 1007),
        (vec![masked(0x01, b"{"), vec![]], 1008),
        (vec![masked(0x88, b"\x03\xe8bye")], 1000),
    ];
    for (frames, code) in cases {
        let shown = format!("{frames:?}");
        assert_eq!(close_after(frames).await, code, "{shown:.80}");
        bystanders.talk().await;
    }
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn control_frames_are_answered_inside_a_message() {
    let node = start(config()).await;
    let mut client = RawClient::open(node.public_addr()).await;
    let connect = json!({"id": 7, "connect": {"token": token(&json!({"sub": "ann"}))}}).to_string();
    let (head, tail) = connect.split_at(20);
    client.frame(0x01, head.as_bytes()).await;
    client.frame(0x89, b"are you there").await;
    assert_eq!(
        client.receive().await,
        Received::Pong(b"are you there".to_vec())
    );
    client.frame(0x80, tail.as_bytes()).await;
    assert!(matches!(client.receive().await, Received::Text(text) if text.contains("client")));
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_http_is_dropped_and_nobody_notices() {
    let mut config = config();
    config.limits.header_timeout = Duration::from_millis(300);
    let node = start(config).await;
    let address = node.public_addr();
    let mut bystanders = Bystanders::arrive(address).await;
    let many_headers = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100));
    let long_header = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(100_000));
    for garbage in [
        b"\x16\x03\x01\x02\x00\x01\x00".to_vec(),
        vec![0xff; 5000],
        b"\r\n\r\n\r\n".to_vec(),
        b"GET /connection/websocket HTTP/1.1\r\nHost".to_vec(),
        b"".to_vec(),
        many_headers.into_bytes(),
        long_header.into_bytes(),
    ] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        drop(socket.write_all(&garbage).await);
        let mut answer = Vec::new();
        let read = socket.read_to_end(&mut answer);
        let ended = tokio::time::timeout(Duration::from_secs(10), read).await;
        assert!(ended.is_ok(), "{garbage:.20?} is let go");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            answer.is_empty() || answer.contains("HTTP/1.1 4"),
            "{answer}"
        );
        bystanders.talk().await;
    }
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_are_checked() {
    let node = start(config()).await;
    let address = node.public_addr();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket";
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let version = "Sec-WebSocket-Version: 13";
    let path = "/connection/websocket HTTP/1.1";
    for (head, expected) in [
        (format!("GET {path}"), 400),
        (
            format!("POST {path}\r\n{upgrade}\r\n{key}\r\n{version}"),
            400,
        ),
        (format!("GET {path}\r\n{upgrade}\r\n{version}"), 400),
        (
            format!("GET {path}\r\n{upgrade}\r\n{key}\r\n{key}\r\n{version}"),
            400,
        ),
        (
            format!("GET {path}\r\n{upgrade}\r\nSec-WebSocket-Key: short\r\n{version}"),
            400,
        ),
        (
            format!("GET {path}\r\n{upgrade}\r\n{key}\r\nSec-WebSocket-Version: 8"),
            400,
        ),
        (
            format!("GET {path}\r\n{upgrade}\r\n{key}\r\n{version}\r\nOrigin: https://evil.test"),
            403,
        ),
        ("GET /nothing HTTP/1.1".to_owned(), 404),
        ("GET /healthz HTTP/1.1".to_owned(), 200),
    ] {
        // `http` adds Connection: close; a second Connection header is legal.
        let (status, body) = http(address, &head, "").await;
        assert_eq!(status, expected, "{head}: {body}");
    }
    stop(node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_api_says_what_is_wrong() {
    let node = start(config()).await;
    let address = node.public_addr();
    let post = |method: &str, headers: &str| format!("POST /api/{method} HTTP/1.1\r\n{headers}");
    let with_key = "X-API-Key: key";
    for (head, body, status) in [
        (post("publish", "a: b"), "{}", 401),
        (post("publish", "X-API-Key: wrong"), "{}", 401),
        (post("publish", "Authorization: Bearer key"), "{}", 401),
        (post("publish", with_key), "{", 400),
        (post("publish", with_key), "", 400),
        (post("nothing", with_key), "{}", 404),
        (
            format!("GET /api/publish HTTP/1.1\r\n{with_key}"),
            "{}",
            405,
        ),
    ] {
        let (found, text) = http(address, &head, body).await;
        assert_eq!(found, status, "{head} {body}: {text}");
    }
    let too_large = format!(r#"{{"channel":"open:1","data":"{}"}}"#, "x".repeat(2 << 20));
    let (status, _) = http(address, &post("publish", with_key), &too_large).await;
    assert_eq!(status, 413);
    for (method, body, code) in [
        ("publish", json!({"data": {}}), 107),
        ("publish", json!({"channel": "open:1"}), 107),
        ("publish", json!({"channel": "open:1", "b64data": "!"}), 107),
        (
            "publish",
            json!({"channel": "open:1", "b64data": "e30ge30="}),
            107,
        ),
        ("publish", json!({"channel": "nowhere:1", "data": {}}), 102),
        ("publish", json!({"channel": 7, "data": {}}), 107),
        ("broadcast", json!({"channels": [], "data": {}}), 107),
        ("history", json!({"channel": "closed:1"}), 108),
        (
            "history",
            json!({"channel": "open:1", "since": {"offset": 0, "epoch": "x"}, "reverse": true}),
            107,
        ),
        ("presence", json!({"channel": "closed:1"}), 108),
        ("disconnect", json!({}), 107),
        (
            "disconnect",
            json!({"user": "u", "disconnect": {"code": 1000, "reason": ""}}),
            107,
        ),
    ] {
        let (status, answer) = http(address, &post(method, with_key), &body.to_string()).await;
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(
            (status, &answer["error"]["code"]),
            (200, &json!(code)),
            "{method} {body}: {answer}"
        );
    }
    let transport = format!("{with_key}\r\nX-Centrifugo-Error-Mode: transport");
    let body = r#"{"channel":"nowhere:1","data":{}}"#;
    let (status, answer) = http(address, &post("publish", &transport), body).await;
    assert_eq!(
        (status, answer.as_str()),
        (404, r#"{"code":102,"message":"unknown channel"}"#)
    );
    stop(node).await;
}
