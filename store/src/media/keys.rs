//! What lies where. Keys are made of media ids only: no client chooses one, and a job that is done
//! twice writes to the same place.

/// Begins the keys of what clients upload; nothing stays there.
pub const STAGING: &str = "pending/";
/// Begins the keys of what was checked.
pub const FINAL: &str = "media/";

/// Returns where a client uploads to.
pub fn staging(id: &str) -> String {
    format!("{STAGING}{id}")
}

/// Returns the id of the medium that a staging key belongs to.
pub fn id_of_staging(key: &str) -> Option<&str> {
    key.strip_prefix(STAGING)
}

/// Returns where a medium's checked file lies.
pub fn original(id: &str) -> String {
    format!("{FINAL}{id}/original")
}

/// Returns where a thumbnail lies.
pub fn thumbnail(id: &str, side: u32) -> String {
    format!("{FINAL}{id}/{side}")
}

/// Begins the keys of everything that was made of a medium.
pub fn all_of(id: &str) -> String {
    format!("{FINAL}{id}/")
}
