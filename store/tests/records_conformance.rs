//! The chat records: the suite that both databases pass.

#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    clippy::unwrap_used,
    reason = "a test that cannot go on panics, and its helpers are shared with other suites"
)]

mod support;

use shared::ids::{ChannelName, UserId};
use store::records::{
    Accepted, Added, ChannelKind, Created, Device, MemberLimits, NewChannel, NewInvitation,
    NewMember, Platform, Records, RecordsError, Role, RoleChange,
};
use support::{Fixture, channel, postgres, sqlite};

const LIMITS: MemberLimits = MemberLimits {
    channels_per_user: 3,
    members_per_channel: 4,
};

macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::open(super::sqlite().await).await).await;
            })*
        }
        mod on_postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::open(super::postgres().await).await).await;
            })*
        }
    };
}

on_both! {
    a_token_belongs_to_the_last_user_who_registered_it,
    a_user_keeps_the_devices_registered_last,
    a_channel_is_made_once,
    members_come_go_and_have_roles,
    an_owner_who_leaves_has_a_successor,
    limits_of_memberships_hold,
    lists_go_on_behind_their_cursor,
    invitations_end_by_time_and_use,
    the_last_use_is_given_once,
    blocks_show_in_direct_chats_only,
    read_positions_never_go_back,
}

struct Opened {
    records: Records,
    _fixture: Fixture,
}

async fn open(fixture: Fixture) -> Opened {
    let records = Records::open(&fixture.config.database).await.unwrap();
    Opened {
        records: records.unwrap(),
        _fixture: fixture,
    }
}

fn user(name: &str) -> UserId {
    name.into()
}

fn device(token: &str, at: i64) -> Device {
    Device {
        token: token.to_owned(),
        platform: Platform::Ios,
        app_version: "1.2".to_owned(),
        updated_at_ms: at,
    }
}

fn member(user: &UserId, role: Role) -> NewMember<'_> {
    NewMember {
        user,
        role,
        joined_offset: 7,
        now_ms: 1,
    }
}

fn group<'a>(channel: &'a ChannelName, created_by: &'a str) -> NewChannel<'a> {
    NewChannel {
        channel,
        kind: ChannelKind::Group,
        name: "Group",
        picture: "",
        created_by,
        now_ms: 5,
    }
}

/// Makes a group whose owner is `ann`.
async fn group_of_ann(records: &Records, name: &str) -> ChannelName {
    let (channel, ann) = (channel(name), user("ann"));
    let owner = [member(&ann, Role::Owner)];
    let created = records
        .create_channel(&group(&channel, "ann"), &owner, LIMITS)
        .await
        .unwrap();
    assert_eq!(created, Created::New);
    channel
}

async fn add(records: &Records, channel: &ChannelName, name: &str) -> Result<Added, RecordsError> {
    let user = user(name);
    records
        .add_member(channel, &member(&user, Role::Member), LIMITS)
        .await
}

async fn role_of(records: &Records, channel: &ChannelName, name: &str) -> Option<Role> {
    let found = records.member(channel, &user(name)).await.unwrap();
    found.map(|member| member.role)
}

fn is_limit<T: std::fmt::Debug>(result: &Result<T, RecordsError>) -> bool {
    matches!(result, Err(RecordsError::Limit(_)))
}

async fn a_token_belongs_to_the_last_user_who_registered_it(opened: Opened) {
    let records = &opened.records;
    let (ann, ben) = (user("ann"), user("ben"));
    for (owner, at) in [(&ann, 1), (&ann, 2), (&ben, 3)] {
        let registered = records.register_device(owner, &device("t", at), 20).await;
        registered.unwrap();
    }
    assert_eq!(records.devices(&ann).await.unwrap(), []);
    assert_eq!(records.devices(&ben).await.unwrap(), [device("t", 3)]);
    assert!(!records.remove_device(&ann, "t").await.unwrap());
    assert!(records.remove_device(&ben, "t").await.unwrap());
    assert_eq!(records.devices(&ben).await.unwrap(), []);
}

async fn a_user_keeps_the_devices_registered_last(opened: Opened) {
    let records = &opened.records;
    let ann = user("ann");
    for (token, at) in [("a", 1), ("b", 2), ("c", 3), ("a", 4), ("d", 5)] {
        let registered = records.register_device(&ann, &device(token, at), 3).await;
        registered.unwrap();
    }
    let devices = records.devices(&ann).await.unwrap();
    let tokens: Vec<String> = devices.into_iter().map(|device| device.token).collect();
    assert_eq!(tokens, ["d", "a", "c"]);
}

async fn a_channel_is_made_once(opened: Opened) {
    let records = &opened.records;
    let made = group_of_ann(records, "chat:1").await;
    let ben = user("ben");
    let again = records
        .create_channel(&group(&made, "ben"), &[member(&ben, Role::Owner)], LIMITS)
        .await
        .unwrap();
    let Created::Known(known) = again else {
        panic!("made twice");
    };
    assert_eq!(
        (known.created_by.as_str(), known.kind),
        ("ann", ChannelKind::Group)
    );
    assert_eq!(role_of(records, &made, "ben").await, None);
    assert!(
        records
            .update_channel(&made, "New", "pic", 9)
            .await
            .unwrap()
    );
    let known = records.channel(&made).await.unwrap().unwrap();
    assert_eq!(
        (
            known.name.as_str(),
            known.picture.as_str(),
            known.created_at_ms,
            known.updated_at_ms
        ),
        ("New", "pic", 5, 9)
    );
    let other = channel("chat:2");
    assert!(!records.update_channel(&other, "x", "", 9).await.unwrap());
    assert_eq!(records.channel(&other).await.unwrap(), None);
}

async fn members_come_go_and_have_roles(opened: Opened) {
    let records = &opened.records;
    let chat = group_of_ann(records, "chat:1").await;
    let ben = user("ben");
    assert_eq!(add(records, &chat, "ben").await.unwrap(), Added::New);
    let change = records.set_role(&chat, &ben, Role::Moderator).await;
    assert_eq!(change.unwrap(), RoleChange::Done);
    assert_eq!(add(records, &chat, "ben").await.unwrap(), Added::Known);
    assert_eq!(role_of(records, &chat, "ben").await, Some(Role::Moderator));
    let nobody = records.set_role(&chat, &user("eve"), Role::Owner).await;
    assert_eq!(nobody.unwrap(), RoleChange::NoMember);
    let last = records.set_role(&chat, &user("ann"), Role::Member).await;
    assert_eq!(last.unwrap(), RoleChange::LastOwner);
    assert!(records.mute(&chat, &ben, 99).await.unwrap());
    assert!(!records.mute(&chat, &user("eve"), 99).await.unwrap());
    let found = records.member(&chat, &ben).await.unwrap().unwrap();
    assert_eq!((found.muted_until_ms, found.joined_offset), (99, 7));
    let standing = records.standing(&chat, &ben).await.unwrap().unwrap();
    assert_eq!(
        (standing.role, standing.is_blocked),
        (Role::Moderator, false)
    );
    assert!(records.remove_member(&chat, &ben).await.unwrap());
    assert!(!records.remove_member(&chat, &ben).await.unwrap());
    assert_eq!(records.standing(&chat, &ben).await.unwrap(), None);
}

async fn an_owner_who_leaves_has_a_successor(opened: Opened) {
    let records = &opened.records;
    let chat = group_of_ann(records, "chat:1").await;
    for name in ["ben", "cid"] {
        add(records, &chat, name).await.unwrap();
    }
    let change = records.set_role(&chat, &user("cid"), Role::Moderator).await;
    assert_eq!(change.unwrap(), RoleChange::Done);
    assert!(records.remove_member(&chat, &user("ann")).await.unwrap());
    assert_eq!(role_of(records, &chat, "cid").await, Some(Role::Owner));
    assert_eq!(role_of(records, &chat, "ben").await, Some(Role::Member));
    assert!(records.remove_member(&chat, &user("cid")).await.unwrap());
    assert_eq!(role_of(records, &chat, "ben").await, Some(Role::Owner));
    assert!(records.remove_member(&chat, &user("ben")).await.unwrap());
}

async fn limits_of_memberships_hold(opened: Opened) {
    let records = &opened.records;
    let chat = group_of_ann(records, "chat:1").await;
    for name in ["ben", "cid", "dan"] {
        add(records, &chat, name).await.unwrap();
    }
    assert!(is_limit(&add(records, &chat, "eve").await));
    assert_eq!(add(records, &chat, "dan").await.unwrap(), Added::Known);
    for name in ["chat:2", "chat:3"] {
        group_of_ann(records, name).await;
    }
    let (fourth, ann) = (channel("chat:4"), user("ann"));
    let owner = [member(&ann, Role::Owner)];
    let refused = records
        .create_channel(&group(&fourth, "ann"), &owner, LIMITS)
        .await;
    assert!(is_limit(&refused));
    assert_eq!(records.channel(&fourth).await.unwrap(), None);
}

async fn lists_go_on_behind_their_cursor(opened: Opened) {
    let records = &opened.records;
    let ann = user("ann");
    for name in ["chat:1", "chat:2", "chat:3"] {
        group_of_ann(records, name).await;
    }
    let chat = channel("chat:2");
    for name in ["ben", "cid"] {
        add(records, &chat, name).await.unwrap();
    }
    let marked = records.mark_read(&ann, &chat, 4, 1).await;
    assert_eq!(marked.unwrap(), 4);
    let first = records.channels_of(&ann, "", 2).await.unwrap();
    let second = records.channels_of(&ann, "chat:2", 2).await.unwrap();
    let names: Vec<&str> = first
        .iter()
        .chain(&second)
        .map(|joined| joined.channel.channel.as_str())
        .collect();
    assert_eq!(names, ["chat:1", "chat:2", "chat:3"]);
    assert_eq!(
        (first[1].read_offset, first[1].joined_offset, first[1].role),
        (4, 7, Role::Owner)
    );
    // Who comes before the cursor meanwhile is not seen, and nobody is seen twice.
    let first = records.members(&chat, "", 2).await.unwrap();
    add(records, &chat, "aaa").await.unwrap();
    let second = records.members(&chat, "ben", 2).await.unwrap();
    let names: Vec<&str> = first
        .iter()
        .chain(&second)
        .map(|m| m.user.as_str())
        .collect();
    assert_eq!(names, ["ann", "ben", "cid"]);
}

async fn invite(
    records: &Records,
    channel: &ChannelName,
    id: &str,
    for_user: &str,
    uses: i64,
    limit: u32,
) -> Result<(), RecordsError> {
    let invitation = NewInvitation {
        id,
        channel,
        user: for_user,
        created_by: "ann",
        expires_at_ms: 100,
        uses,
        now_ms: 10,
    };
    records.create_invitation(&invitation, limit).await
}

async fn accept(
    records: &Records,
    channel: &ChannelName,
    id: &str,
    name: &str,
    now_ms: i64,
) -> Accepted {
    let user = user(name);
    let new = NewMember {
        now_ms,
        ..member(&user, Role::Member)
    };
    let accepted = records.accept_invitation(channel, id, &new, LIMITS).await;
    accepted.unwrap()
}

async fn invitations_end_by_time_and_use(opened: Opened) {
    let records = &opened.records;
    let chat = group_of_ann(records, "chat:1").await;
    let other = group_of_ann(records, "chat:2").await;
    invite(records, &chat, "open", "", 1, 3).await.unwrap();
    invite(records, &chat, "for-ben", "ben", 1, 3)
        .await
        .unwrap();
    invite(records, &chat, "late", "", 5, 3).await.unwrap();
    assert!(is_limit(&invite(records, &chat, "more", "", 1, 3).await));
    assert_eq!(
        accept(records, &chat, "for-ben", "eve", 20).await,
        Accepted::NoInvitation
    );
    assert_eq!(
        accept(records, &other, "open", "eve", 20).await,
        Accepted::NoInvitation
    );
    assert_eq!(
        accept(records, &chat, "", "eve", 20).await,
        Accepted::NoInvitation
    );
    assert_eq!(accept(records, &chat, "", "ben", 20).await, Accepted::New);
    // A member takes no use.
    assert_eq!(
        accept(records, &chat, "open", "ben", 20).await,
        Accepted::Known
    );
    assert_eq!(
        accept(records, &chat, "open", "cid", 20).await,
        Accepted::New
    );
    assert_eq!(
        accept(records, &chat, "open", "dan", 20).await,
        Accepted::NoInvitation
    );
    assert_eq!(
        accept(records, &chat, "late", "dan", 100).await,
        Accepted::NoInvitation
    );
    // Used up: there is room again.
    invite(records, &chat, "more", "", 1, 3).await.unwrap();
}

async fn the_last_use_is_given_once(opened: Opened) {
    let records = &opened.records;
    let chat = group_of_ann(records, "chat:1").await;
    invite(records, &chat, "open", "", 1, 3).await.unwrap();
    let all = futures::future::join_all(
        ["ben", "cid", "dan"].map(|name| accept(records, &chat, "open", name, 20)),
    );
    let accepted = all.await;
    let new = accepted.iter().filter(|one| **one == Accepted::New);
    assert_eq!(new.count(), 1, "{accepted:?}");
}

async fn blocks_show_in_direct_chats_only(opened: Opened) {
    let records = &opened.records;
    let (ann, ben) = (user("ann"), user("ben"));
    let chat = group_of_ann(records, "chat:1").await;
    add(records, &chat, "ben").await.unwrap();
    let direct = channel("chat:dm.1");
    let new = NewChannel {
        kind: ChannelKind::Direct,
        ..group(&direct, "ann")
    };
    let both = [member(&ann, Role::Member), member(&ben, Role::Member)];
    records.create_channel(&new, &both, LIMITS).await.unwrap();
    let peers = records.channels_of(&ben, "", 9).await.unwrap();
    let peers: Vec<&str> = peers.iter().map(|joined| joined.peer.as_str()).collect();
    assert_eq!(peers, ["", "ann"]);
    for _ in 0..2 {
        records.block(&ann, &ben, 1, 3).await.unwrap();
    }
    assert!(is_limit(&records.block(&ann, &user("eve"), 1, 3).await));
    let is_blocked = async |channel: &ChannelName, user: &UserId| {
        let standing = records.standing(channel, user).await.unwrap();
        standing.unwrap().is_blocked
    };
    assert!(is_blocked(&direct, &ben).await);
    assert!(!is_blocked(&direct, &ann).await);
    assert!(!is_blocked(&chat, &ben).await);
    let listed = records.blocks(&ann, "", 9).await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].user, ben);
    assert!(records.unblock(&ann, &ben).await.unwrap());
    assert!(!records.unblock(&ann, &ben).await.unwrap());
    assert!(!is_blocked(&direct, &ben).await);
}

async fn read_positions_never_go_back(opened: Opened) {
    let records = &opened.records;
    let (ann, chat) = (user("ann"), channel("chat:1"));
    assert_eq!(records.read_position(&ann, &chat).await.unwrap(), None);
    for (offset, expected) in [(3, 3), (8, 8), (5, 8), (8, 8)] {
        let marked = records.mark_read(&ann, &chat, offset, 1).await.unwrap();
        assert_eq!(marked, expected);
    }
    assert_eq!(records.read_position(&ann, &chat).await.unwrap(), Some(8));
}
