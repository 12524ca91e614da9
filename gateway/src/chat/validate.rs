//! Checks of what people write into fields.

use shared::ids::UserId;

use super::error::ChatError;

/// Longest user id that is taken, in bytes.
const USER_BYTES_MAX: usize = 255;
/// Longest name of a channel, in characters.
const NAME_CHARS_MAX: usize = 128;
/// Longest id of a medium, in bytes.
const MEDIA_ID_BYTES_MAX: usize = 64;

/// Checks a name for people; it may be empty.
pub(super) fn name(field: &str, name: &str) -> Result<(), ChatError> {
    let is_good = name.chars().count() <= NAME_CHARS_MAX && !name.chars().any(char::is_control);
    require(is_good, || {
        format!("{field}: at most {NAME_CHARS_MAX} characters, no control characters")
    })
}

/// Checks a medium's id; it may be empty.
pub(super) fn media_id(field: &str, id: &str) -> Result<(), ChatError> {
    let is_good = id.len() <= MEDIA_ID_BYTES_MAX && id.chars().all(|c| c.is_ascii_graphic());
    require(is_good, || format!("{field}: the id of a medium"))
}

/// Checks the id of another user.
pub(crate) fn user(field: &str, id: &str) -> Result<UserId, ChatError> {
    let is_good = !id.is_empty() && id.len() <= USER_BYTES_MAX && !id.chars().any(char::is_control);
    require(is_good, || {
        format!("{field}: the id of a user has 1 to {USER_BYTES_MAX} bytes")
    })?;
    Ok(id.into())
}

/// Refuses a request unless the condition holds.
pub(super) fn require(is_good: bool, problem: impl FnOnce() -> String) -> Result<(), ChatError> {
    if is_good {
        Ok(())
    } else {
        Err(ChatError::Invalid(problem()))
    }
}
