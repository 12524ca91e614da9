//! One user's data in the chat records, on both databases. Needs PostgreSQL.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, and its helpers are part of it"
)]

#[allow(dead_code, reason = "shared with suites that use all of it")]
mod support;

use std::collections::BTreeSet;

use shared::ids::UserId;
use sqlx::{AnyConnection, Connection};
use store::records::{
    ChannelKind, Device, MemberLimits, NewChannel, NewMember, Platform, Records, Role,
};
use support::{Fixture, channel};

const LIMITS: MemberLimits = MemberLimits {
    channels_per_user: 10,
    members_per_channel: 10,
};

/// What no method of this room writes: media and pushes are the workers'.
const OTHERS: [&str; 6] = [
    "INSERT INTO media VALUES ('m1', 'c', 'eve', 'ready', 'a.jpg', 'image/jpeg', 9, '', '', '{}',
        '', 1, 1)",
    "INSERT INTO push_log VALUES ('p1', 'token', 'eve', 'c', 'sent', 1)",
    "INSERT INTO push_log VALUES ('p1', 'other', 'ann', 'c', 'sent', 1)",
    "INSERT INTO channel_invitations VALUES ('i1', 'c', 'eve', 'ann', 1, 2, 1)",
    "INSERT INTO user_blocks VALUES ('eve', 'bob', 1)",
    "INSERT INTO user_blocks VALUES ('ann', 'eve', 1)",
];

#[tokio::test]
async fn a_user_is_handed_out_and_erased_in_sqlite() {
    handed_out_and_erased(support::sqlite().await).await;
}

#[tokio::test]
async fn a_user_is_handed_out_and_erased_in_postgres() {
    handed_out_and_erased(support::postgres().await).await;
}

async fn handed_out_and_erased(fixture: Fixture) {
    let records = Records::open(&fixture.config.database).await.unwrap();
    let records = records.unwrap();
    let (eve, ann) = (UserId::from("eve"), UserId::from("ann"));
    fill(&fixture, &records, &eve, &ann).await;

    let found = records.of_user(&eve).await.unwrap();
    let kinds: BTreeSet<&str> = found.iter().map(|found| found.record).collect();
    let all = [
        "block",
        "channel",
        "device",
        "invitation",
        "medium",
        "membership",
        "push",
        "read_position",
    ];
    assert_eq!(kinds, BTreeSet::from(all));
    let text = serde_json::to_string(&found).unwrap();
    assert!(
        text.contains(r#""size_bytes":9"#),
        "numbers are numbers: {text}"
    );
    assert!(!text.contains("\"other\""), "others' rows are theirs");

    let erased = records.erase_user(&eve).await.unwrap();
    assert_eq!(erased.channels, [channel("c")]);
    assert_eq!(erased.media, ["m1"], "objects need their rows to be found");
    let left = records.of_user(&eve).await.unwrap();
    let left: Vec<&str> = left.iter().map(|found| found.record).collect();
    assert_eq!(left, ["medium"]);
    let heir = records.member(&channel("c"), &ann).await.unwrap();
    assert_eq!(heir.unwrap().role, Role::Owner, "a channel has an owner");
    let others = records.of_user(&ann).await.unwrap();
    let others: Vec<&str> = others.iter().map(|found| found.record).collect();
    assert_eq!(
        others,
        ["membership", "push"],
        "a block of the erased is gone"
    );

    let again = records.erase_user(&eve).await.unwrap();
    assert_eq!((again.records, again.media.len()), (0, 1), "done is done");
    let nobody = UserId::from("");
    assert!(records.of_user(&nobody).await.unwrap().is_empty());
}

async fn fill(fixture: &Fixture, records: &Records, eve: &UserId, ann: &UserId) {
    let device = Device {
        token: "token".to_owned(),
        platform: Platform::Ios,
        app_version: "1".to_owned(),
        updated_at_ms: 1,
    };
    records.register_device(eve, &device, 5).await.unwrap();
    let name = channel("c");
    let group = NewChannel {
        channel: &name,
        kind: ChannelKind::Group,
        name: "Group",
        picture: "",
        created_by: "eve",
        now_ms: 1,
    };
    let member = |user, role| NewMember {
        user,
        role,
        joined_offset: 0,
        now_ms: 1,
    };
    let members = [member(eve, Role::Owner), member(ann, Role::Member)];
    records
        .create_channel(&group, &members, LIMITS)
        .await
        .unwrap();
    records.mark_read(eve, &name, 3, 1).await.unwrap();
    let url = fixture.config.database.url.as_ref().unwrap();
    let mut connection = AnyConnection::connect(url.expose()).await.unwrap();
    for statement in OTHERS {
        sqlx::query(statement)
            .execute(&mut connection)
            .await
            .unwrap();
    }
}
