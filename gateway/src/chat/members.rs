//! `channel.join`, `channel.leave`, `channel.members`, `channel.kick`, `channel.set_role`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shared::config::Join;
use shared::ids::{ChannelName, UserId};
use store::records::{
    Accepted, Added, ChannelKind, NewChannel, NewMember, Role, RoleChange, Standing,
};

use super::channels::check_new_name;
use super::cursor::Page;
use super::error::ChatError;
use super::operation::Ask;
use super::views::{ChannelView, Done, MemberView, RoleName};
use super::{Caller, Chat, now_ms, validate};

impl Chat {
    /// Returns what a user may do in a channel, who must be a member.
    pub(super) async fn member(
        &self,
        channel: &ChannelName,
        user: &UserId,
    ) -> Result<Standing, ChatError> {
        let standing = self.records()?.standing(channel, user).await?;
        standing.ok_or(ChatError::Forbidden("you are no member"))
    }

    /// The same, for moderators of groups.
    pub(super) async fn moderator(
        &self,
        channel: &ChannelName,
        user: &UserId,
    ) -> Result<Standing, ChatError> {
        let standing = self.member(channel, user).await?;
        if standing.kind == ChannelKind::Direct {
            return Err(ChatError::Forbidden("a direct chat has no moderators"));
        }
        if standing.role < Role::Moderator {
            return Err(ChatError::Forbidden("this needs a moderator"));
        }
        Ok(standing)
    }

    pub(super) async fn channel_view(
        &self,
        channel: &ChannelName,
    ) -> Result<ChannelView, ChatError> {
        let record = self.records()?.channel(channel).await?;
        let record = record.ok_or(ChatError::NotFound("there is no such channel"))?;
        Ok(record.into())
    }

    /// Takes a member out of a channel, and off it on every node.
    pub(super) async fn remove(
        &self,
        channel: &ChannelName,
        user: &UserId,
    ) -> Result<(), ChatError> {
        self.records()?.remove_member(channel, user).await?;
        // Told even when nothing was removed: the first attempt may have ended between the two.
        self.tell(user, channel.as_str(), true).await
    }
}

/// Makes the user a member. In a namespace that is open to all, a channel that is not there is
/// made, and the user its owner.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct JoinChannel {
    channel: String,
    /// Id of the invitation; empty: one that names the user, or none where none is needed.
    #[serde(default)]
    invitation: String,
}

impl Ask for JoinChannel {
    type Answer = ChannelView;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<ChannelView, ChatError> {
        let user = caller.known_user()?;
        let (channel, namespace) = chat.with_members(&self.channel)?;
        let records = chat.records()?;
        if records.standing(&channel, user).await?.is_some() {
            return chat.channel_view(&channel).await;
        }
        let member = NewMember {
            user,
            role: Role::Member,
            joined_offset: chat.top_offset(&channel, &namespace).await?,
            now_ms: now_ms(),
        };
        match namespace.options.join {
            Join::Server => return Err(ChatError::Forbidden("the backend adds members")),
            Join::Invite => {
                let id = &self.invitation;
                let accepted = records.accept_invitation(&channel, id, &member, chat.limits());
                if accepted.await? == Accepted::NoInvitation {
                    return Err(ChatError::Forbidden("there is no invitation for you"));
                }
            }
            Join::Open => chat.join_open(&channel, &member).await?,
        }
        chat.tell(user, channel.as_str(), false).await?;
        chat.channel_view(&channel).await
    }
}

impl Chat {
    async fn join_open(
        &self,
        channel: &ChannelName,
        member: &NewMember<'_>,
    ) -> Result<(), ChatError> {
        let records = self.records()?;
        match records.channel(channel).await? {
            // Nobody else's direct chat, whatever the namespace says.
            Some(known) if known.kind == ChannelKind::Direct => {
                Err(ChatError::Forbidden("a direct chat has two members"))
            }
            Some(_) => {
                let added = records.add_member(channel, member, self.limits()).await?;
                debug_assert!(matches!(added, Added::New | Added::Known));
                Ok(())
            }
            None => {
                check_new_name(channel.as_str())?;
                let new = NewChannel {
                    channel,
                    kind: ChannelKind::Group,
                    name: "",
                    picture: "",
                    created_by: member.user.as_str(),
                    now_ms: member.now_ms,
                };
                let owner = NewMember {
                    role: Role::Owner,
                    ..*member
                };
                records
                    .create_channel(&new, &[owner], self.limits())
                    .await?;
                // Somebody else may have made it in this moment.
                records.add_member(channel, member, self.limits()).await?;
                Ok(())
            }
        }
    }
}

/// Ends the user's membership of a group.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct LeaveChannel {
    channel: String,
}

impl Ask for LeaveChannel {
    type Answer = Done;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<Done, ChatError> {
        let user = caller.known_user()?;
        let (channel, _) = chat.with_members(&self.channel)?;
        let standing = chat.records()?.standing(&channel, user).await?;
        if standing.is_some_and(|standing| standing.kind == ChannelKind::Direct) {
            return Err(ChatError::Forbidden(
                "a direct chat stays; block the other user instead",
            ));
        }
        chat.remove(&channel, user).await?;
        Ok(Done {})
    }
}

/// Lists the members of a channel that the user is in, by user.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ListMembers {
    channel: String,
    /// From the last page.
    #[serde(default)]
    cursor: String,
    /// At most 200.
    limit: Option<u32>,
}

/// A page of members.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct MemberPage {
    members: Vec<MemberView>,
    /// Where the next page begins; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    cursor: Option<String>,
}

impl Ask for ListMembers {
    type Answer = MemberPage;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<MemberPage, ChatError> {
        let (channel, _) = chat.with_members(&self.channel)?;
        chat.member(&channel, caller.known_user()?).await?;
        let page = Page::of(&self.cursor, self.limit)?;
        let found = chat
            .records()?
            .members(&channel, &page.after, page.ask())
            .await?;
        let (found, cursor) = page.cut(found, |member| member.user.as_str());
        Ok(MemberPage {
            members: found.into_iter().map(MemberView::from).collect(),
            cursor,
        })
    }
}

/// Removes a member of a lower role; for moderators.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct KickMember {
    channel: String,
    user: String,
}

impl Ask for KickMember {
    type Answer = Done;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<Done, ChatError> {
        let (channel, _) = chat.with_members(&self.channel)?;
        let user = validate::user("user", &self.user)?;
        let own = chat.moderator(&channel, caller.known_user()?).await?;
        let other = chat.records()?.standing(&channel, &user).await?;
        if other.is_some_and(|other| other.role >= own.role) {
            return Err(ChatError::Forbidden("the member's role is not below yours"));
        }
        chat.remove(&channel, &user).await?;
        Ok(Done {})
    }
}

/// Gives a member a role; for owners.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct SetRole {
    channel: String,
    user: String,
    role: RoleName,
}

impl Ask for SetRole {
    type Answer = Done;

    async fn handle(self, chat: &Chat, caller: &Caller) -> Result<Done, ChatError> {
        let (channel, _) = chat.with_members(&self.channel)?;
        let user = validate::user("user", &self.user)?;
        let own = chat.moderator(&channel, caller.known_user()?).await?;
        if own.role < Role::Owner {
            return Err(ChatError::Forbidden("this needs an owner"));
        }
        chat.set_role(&channel, &user, self.role.into()).await?;
        Ok(Done {})
    }
}

impl Chat {
    pub(super) async fn set_role(
        &self,
        channel: &ChannelName,
        user: &UserId,
        role: Role,
    ) -> Result<(), ChatError> {
        match self.records()?.set_role(channel, user, role).await? {
            RoleChange::Done => self.tell(user, channel.as_str(), false).await,
            RoleChange::NoMember => Err(ChatError::NotFound("the user is no member")),
            RoleChange::LastOwner => Err(ChatError::Conflict(
                "a channel keeps one owner: make another member one first",
            )),
        }
    }
}
