//! What a file is, by its own bytes: names and headers are only claims.

use super::Rejection;

/// Bytes that are enough to know.
pub(crate) const PREFIX_BYTES: u64 = 8192;

/// Checks that a file is what it was declared to be, and that this may be uploaded.
///
/// # Errors
/// When it is not, or may not.
pub(crate) fn check(prefix: &[u8], declared: &str, allowed: &[String]) -> Result<(), Rejection> {
    if !allowed.iter().any(|known| known == declared) {
        return Err(Rejection::new(
            "type_not_allowed",
            format!("{declared} may not be uploaded"),
        ));
    }
    let found = infer::get(prefix).map(|kind| kind.mime_type());
    if found.is_some_and(|found| same(found) == same(declared)) {
        return Ok(());
    }
    let found = found.unwrap_or("of no known type");
    Err(Rejection::new(
        "type_mismatch",
        format!("the file is {found}, not {declared}"),
    ))
}

/// Names that mean one type.
fn same(name: &str) -> &str {
    match name {
        "audio/mp4" | "audio/x-m4a" => "audio/m4a",
        "audio/x-wav" | "audio/wave" => "audio/wav",
        "audio/flac" => "audio/x-flac",
        "audio/mp3" => "audio/mpeg",
        "audio/opus" => "audio/ogg",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(bytes: &[u8], declared: &str) -> Option<&'static str> {
        let allowed = ["image/png", "image/jpeg", "audio/mp4"].map(str::to_owned);
        check(bytes, declared, &allowed).err().map(|why| why.code)
    }

    #[test]
    fn the_bytes_decide() {
        let png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";
        assert_eq!(code(png, "image/png"), None);
        assert_eq!(code(png, "image/jpeg"), Some("type_mismatch"));
        assert_eq!(code(png, "text/html"), Some("type_not_allowed"));
        assert_eq!(code(b"\0\0\0\x18ftypM4A \0\0\0\0", "audio/mp4"), None);
        let svg = br#"<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>"#;
        assert_eq!(code(svg, "image/png"), Some("type_mismatch"));
        let bare = br#"<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>"#;
        assert_eq!(code(bare, "image/png"), Some("type_mismatch"));
        assert_eq!(code(b"<html><script>", "image/png"), Some("type_mismatch"));
        assert_eq!(code(b"", "image/png"), Some("type_mismatch"));
    }
}
