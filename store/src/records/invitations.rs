//! Invitations: who may become a member, until when, how often.

use shared::ids::ChannelName;

use super::members::{self, Added, MemberLimits, NewMember};
use super::{Records, RecordsError};

const FORGET: &str = "
DELETE FROM channel_invitations
WHERE channel = $1 AND (expires_at_ms <= $2 OR uses_left <= 0)";
const INSERT: &str = "
INSERT INTO channel_invitations
    (id, channel, user_id, created_by, created_at_ms, expires_at_ms, uses_left)
SELECT $1, $2, $3, $4, $5, $6, $7
WHERE (SELECT COUNT(*) FROM channel_invitations WHERE channel = $2) < $8";
/// The last condition is checked again by whoever waited for the row: no use is given twice.
const USE: &str = "
UPDATE channel_invitations SET uses_left = uses_left - 1 WHERE uses_left > 0 AND id = (
    SELECT id FROM channel_invitations WHERE channel = $1
        AND (id = $2 OR ($2 = '' AND user_id = $3)) AND (user_id = '' OR user_id = $3)
        AND uses_left > 0 AND expires_at_ms > $4
    ORDER BY expires_at_ms, id LIMIT 1)";

/// An invitation to make.
#[derive(Debug, Clone)]
pub struct NewInvitation<'a> {
    /// Its id, which nobody can guess.
    pub id: &'a str,
    /// The channel.
    pub channel: &'a ChannelName,
    /// For whom; empty: for whoever has the id.
    pub user: &'a str,
    /// Who invites.
    pub created_by: &'a str,
    /// When it ends, Unix milliseconds.
    pub expires_at_ms: i64,
    /// How many users it lets in.
    pub uses: i64,
    /// Now, Unix milliseconds.
    pub now_ms: i64,
}

/// What coming with an invitation came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// The user is a member now.
    New,
    /// The user was one before; no use was taken.
    Known,
    /// There is no such invitation, for this user, now.
    NoInvitation,
}

impl Records {
    /// Makes an invitation; at most `limit` of a channel are open.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn create_invitation(
        &self,
        new: &NewInvitation<'_>,
        limit: u32,
    ) -> Result<(), RecordsError> {
        let mut transaction = self.pool.begin().await?;
        sqlx::query(FORGET)
            .bind(new.channel.as_str())
            .bind(new.now_ms)
            .execute(&mut *transaction)
            .await?;
        let inserted = sqlx::query(INSERT)
            .bind(new.id)
            .bind(new.channel.as_str())
            .bind(new.user)
            .bind(new.created_by)
            .bind(new.now_ms)
            .bind(new.expires_at_ms)
            .bind(new.uses)
            .bind(i64::from(limit))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        if inserted.rows_affected() > 0 {
            return Ok(());
        }
        Err(RecordsError::Limit(format!(
            "a channel has at most {limit} open invitations"
        )))
    }

    /// Makes a user a member by an invitation: the one with this id, or with an empty id one that
    /// names the user.
    ///
    /// # Errors
    /// See [`RecordsError`].
    pub async fn accept_invitation(
        &self,
        channel: &ChannelName,
        id: &str,
        member: &NewMember<'_>,
        limits: MemberLimits,
    ) -> Result<Accepted, RecordsError> {
        let mut transaction = self.pool.begin().await?;
        let used = sqlx::query(USE)
            .bind(channel.as_str())
            .bind(id)
            .bind(member.user.as_str())
            .bind(member.now_ms)
            .execute(&mut *transaction)
            .await?;
        if used.rows_affected() == 0 {
            drop(transaction);
            let known = self.member(channel, member.user).await?;
            return Ok(known.map_or(Accepted::NoInvitation, |_| Accepted::Known));
        }
        // What is not committed takes no use.
        match members::insert(&mut transaction, channel, member, limits).await? {
            Added::Known => Ok(Accepted::Known),
            Added::New => {
                transaction.commit().await?;
                Ok(Accepted::New)
            }
        }
    }
}
