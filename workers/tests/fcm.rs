//! The FCM provider against a stand-in that checks what Google would check.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

#[path = "support/fcm.rs"]
#[allow(dead_code, reason = "shared with the push worker's tests")]
mod fcm;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fcm::{Answer, error, error_with};
use serde_json::json;
use tokio::time::Instant;
use workers::push::fcm::{Fcm, FcmSettings, ServiceAccount};
use workers::push::metrics::PushMetrics;
use workers::push::provider::{Notification, Push, PushProvider, SendError};

const TIMEOUT: Duration = Duration::from_secs(1);

fn provider(stand_in: &fcm::Fcm) -> Arc<Fcm> {
    let settings = FcmSettings {
        base_url: stand_in.base_url(),
        timeout: TIMEOUT,
        connections: 2,
        in_flight_max: 64,
        messages_per_minute_max: NonZeroU32::new(6_000_000).unwrap(),
    };
    let account = ServiceAccount::read(&stand_in.credentials()).unwrap();
    Arc::new(Fcm::new(&settings, account, PushMetrics::default()).unwrap())
}

fn push(token: &str) -> Push {
    Push {
        token: token.to_owned(),
        notification: Some(Notification {
            title: "Garden".to_owned(),
            body: "see you 😀".repeat(1_000),
        }),
        data: [("type".to_owned(), "message".to_owned())].into(),
        thread: "chat:1".to_owned(),
        is_collapsible: true,
        badge: Some(1),
        ttl: Duration::from_secs(60),
    }
}

async fn sent(provider: &Fcm, token: &str) -> Result<(), SendError> {
    provider.send(&push(token)).await
}

fn after(result: Result<(), SendError>) -> Duration {
    match result {
        Err(SendError::Later { after, .. }) => after,
        other => panic!("{other:?} is not later"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pushes_share_few_connections_and_one_access_token() {
    let stand_in = fcm::Fcm::start().await;
    stand_in.set_latency(Duration::from_millis(20));
    let provider = provider(&stand_in);
    let sends = (0..500).map(|n| {
        let provider = Arc::clone(&provider);
        tokio::spawn(async move { sent(&provider, &format!("device-{n}")).await })
    });
    for send in sends.collect::<Vec<_>>() {
        send.await.unwrap().unwrap();
    }
    assert_eq!(stand_in.faults(), Vec::<String>::new());
    assert_eq!(stand_in.taken().len(), 500);
    assert_eq!(stand_in.token_calls(), 1, "one caller made it for all");
    // Two for pushes, one for the access token.
    let connections = stand_in.connections.load(Ordering::Relaxed);
    assert!(connections <= 3, "{connections} connections");
}

/// F1: what an error means for the token, row by row.
#[tokio::test(flavor = "multi_thread")]
async fn f1_only_dead_tokens_are_given_up() {
    let stand_in = fcm::Fcm::start().await;
    let provider = provider(&stand_in);
    let bad_request = json!([{
        "@type": "type.googleapis.com/google.rpc.BadRequest",
        "fieldViolations": [{ "field": "message.android.ttl", "description": "Invalid ttl" }],
    }]);
    let words = "The registration token is not a valid FCM registration token";
    stand_in.script(
        "gone",
        [error(
            404,
            "UNREGISTERED",
            "Requested entity was not found.",
            None,
        )],
    );
    stand_in.script("wrong", [error(400, "INVALID_ARGUMENT", words, None)]);
    stand_in.script(
        "payload",
        [error_with(400, "Invalid ttl", &bad_request, None)],
    );
    stand_in.script(
        "oversize",
        [error_with(400, "Message too big", &json!(null), None)],
    );
    stand_in.script(
        "foreign",
        [error(403, "SENDER_ID_MISMATCH", "SenderId mismatch", None)],
    );
    assert_eq!(sent(&provider, "gone").await, Err(SendError::TokenGone));
    assert_eq!(sent(&provider, "wrong").await, Err(SendError::TokenGone));
    for token in ["payload", "oversize", "foreign"] {
        let result = sent(&provider, token).await;
        assert!(
            matches!(result, Err(SendError::Refused(_))),
            "{token}: {result:?}"
        );
    }
    // None of it holds up the others.
    sent(&provider, "good").await.unwrap();
    assert_eq!(stand_in.faults(), Vec::<String>::new());
}

/// F1: what may pass waits; the stand-in sees no call before `Retry-After` is over.
#[tokio::test(flavor = "multi_thread")]
async fn f1_retry_after_is_waited_out() {
    let stand_in = fcm::Fcm::start().await;
    for (status, code) in [(429, "QUOTA_EXCEEDED"), (503, "UNAVAILABLE")] {
        let provider = provider(&stand_in);
        let token = format!("device-{status}");
        stand_in.script(&token, [error(status, code, "", Some(2))]);
        let began = Instant::now();
        let pause = after(sent(&provider, &token).await);
        assert_eq!(pause, Duration::from_secs(2));
        // Everything waits, whoever asks and however often.
        let calls = stand_in.calls().len();
        while let Err(SendError::Later { after, .. }) = sent(&provider, "other").await {
            assert!(after <= pause);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let waited = began.elapsed();
        assert!(waited >= pause, "{waited:?}");
        assert_eq!(
            stand_in.calls().len(),
            calls + 1,
            "calls before Retry-After"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn f1_failures_without_a_time_wait_at_least_ten_seconds() {
    let stand_in = fcm::Fcm::start().await;
    let html = Answer::Error {
        status: 502,
        body: "<html>Bad Gateway</html>".to_owned(),
        retry_after_s: None,
    };
    for answer in [
        error(500, "INTERNAL", "", None),
        html,
        Answer::SlowBody,
        Answer::Reset,
    ] {
        let provider = provider(&stand_in);
        stand_in.script("device", [answer.clone()]);
        let began = Instant::now();
        let pause = after(sent(&provider, "device").await);
        assert!(pause >= Duration::from_secs(10), "{answer:?}: {pause:?}");
        assert!(began.elapsed() < TIMEOUT * 3, "{answer:?}");
        // Only this push waits.
        sent(&provider, "device").await.unwrap();
    }
    let provider = provider(&stand_in);
    stand_in.script("device", [error(429, "QUOTA_EXCEEDED", "", None)]);
    assert!(after(sent(&provider, "device").await) >= Duration::from_secs(60));
}

/// F1: a refused access token is made anew once; refused again, nothing is sent for a while.
#[tokio::test(flavor = "multi_thread")]
async fn f1_a_refused_account_stops_everything() {
    let stand_in = fcm::Fcm::start().await;
    let first = provider(&stand_in);
    sent(&first, "a").await.unwrap();
    stand_in.revoke_access_tokens();
    sent(&first, "a").await.unwrap();
    assert_eq!(stand_in.token_calls(), 2, "made anew once");

    for (status, calls_made) in [(401, 2), (403, 1)] {
        let provider = provider(&stand_in);
        let refusals = std::iter::repeat_n(error(status, "", "", None), 2);
        stand_in.script(&format!("device-{status}"), refusals);
        let before = stand_in.calls().len();
        let pause = after(sent(&provider, &format!("device-{status}")).await);
        assert!(pause >= Duration::from_secs(60));
        for _ in 0..10 {
            after(sent(&provider, "other").await);
        }
        assert_eq!(stand_in.calls().len(), before + calls_made, "{status}");
    }
    // Apple's refusal holds up Apple's devices only.
    let provider = provider(&stand_in);
    stand_in.script("iphone", [error(401, "THIRD_PARTY_AUTH_ERROR", "", None)]);
    let token_calls = stand_in.token_calls();
    after(sent(&provider, "iphone").await);
    sent(&provider, "android").await.unwrap();
    assert_eq!(
        stand_in.token_calls(),
        token_calls + 1,
        "only the first one"
    );
}

/// F3: the access token is made anew before its end, and used until then when that fails.
#[tokio::test(flavor = "multi_thread")]
async fn f3_an_access_token_outlives_its_endpoint() {
    let stand_in = fcm::Fcm::start().await;
    // Made anew at 4 s, not used after 4.75 s.
    stand_in.set_token_life(5);
    let provider = provider(&stand_in);
    sent(&provider, "a").await.unwrap();
    assert_eq!(stand_in.token_calls(), 1);
    stand_in.set_token_endpoint_down(true);
    let began = Instant::now();
    let mut sends = 0;
    let error = loop {
        match sent(&provider, "a").await {
            Ok(()) => sends += 1,
            Err(error) => break error,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(stand_in.token_calls() >= 3, "at 4 s, and at its end");
    let lasted = began.elapsed();
    assert!(
        sends > 10 && lasted > Duration::from_millis(4_500),
        "{sends} in {lasted:?}"
    );
    assert!(matches!(error, SendError::Later { .. }), "{error:?}");
    stand_in.set_token_endpoint_down(false);
    sent(&provider, "a").await.unwrap();
    assert_eq!(stand_in.faults(), Vec::<String>::new());
}
