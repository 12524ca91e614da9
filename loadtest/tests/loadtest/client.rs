//! The client by itself: refused, disconnected, back again.

use std::sync::Arc;
use std::time::Duration;

use loadtest::client::{Client, ClientOptions, Event, TokenSigner};
use tokio::time::timeout;

use crate::gateway::{Faults, ToyCluster};

async fn next(client: &mut Client) -> Event {
    timeout(Duration::from_secs(10), client.next())
        .await
        .expect("an event in time")
        .expect("a client that goes on")
}

fn client(cluster: &ToyCluster) -> Client {
    let signer = TokenSigner::new("a secret of the toy cluster, 32 bytes");
    let token = signer.sign("alice", Duration::from_secs(60)).unwrap();
    Client::new(Arc::new(ClientOptions::new(cluster.endpoints())), token, 0)
}

#[tokio::test]
async fn a_client_comes_back_through_the_other_gateway_with_its_position() {
    let mut cluster = ToyCluster::start(2, Faults::default()).await;
    let mut alice = client(&cluster);
    alice.subscribe("chat:1");
    assert!(matches!(
        next(&mut alice).await,
        Event::Connected { endpoint: 0, .. }
    ));
    assert!(matches!(next(&mut alice).await, Event::Subscribed { .. }));

    let body = serde_json::from_str(r#"{"channel":"chat:1","data":{"n":1},"idempotency_key":"k"}"#);
    let sent = alice.rpc("message.send", body.unwrap());
    let Event::Publication(publication) = next(&mut alice).await else {
        panic!("the publication comes before the answer");
    };
    assert_eq!((publication.offset, &*publication.data), (1, r#"{"n":1}"#));
    assert!(matches!(next(&mut alice).await, Event::Reply { id, .. } if Some(id) == sent));

    cluster.kill(0).await;
    assert!(matches!(
        next(&mut alice).await,
        Event::Disconnected {
            is_terminal: false,
            ..
        }
    ));
    assert!(matches!(
        next(&mut alice).await,
        Event::Connected { endpoint: 1, .. }
    ));
    let Event::Subscribed {
        from,
        recovered,
        position,
        ..
    } = next(&mut alice).await
    else {
        panic!("subscribed again");
    };
    assert!(recovered);
    assert_eq!(from, Some(position));
}

#[tokio::test]
async fn a_client_keeps_trying_while_nobody_answers() {
    let mut cluster = ToyCluster::start(1, Faults::default()).await;
    cluster.kill(0).await;
    let mut alice = client(&cluster);
    assert!(matches!(
        next(&mut alice).await,
        Event::ConnectFailed { .. }
    ));
    cluster.restart(0).await;
    while !matches!(next(&mut alice).await, Event::Connected { .. }) {}
}
