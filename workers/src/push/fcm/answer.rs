//! What FCM answers, and what that means: the table of errors.
//!
//! Google's reference of `ErrorCode` gives the codes; `errorCode` is in the detail of type
//! `FcmError`, and the same status may come with a `google.rpc.BadRequest` instead. Some answers
//! are no JSON at all.

use std::time::Duration;

use serde::Deserialize;

/// What is to be done about an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// FCM has taken the push.
    Taken,
    /// Delete this token.
    TokenGone,
    /// Drop this push.
    Refused(String),
    /// The token belongs to another sender: drop the push; many of them: the project is wrong.
    OtherSender(String),
    /// The access token is not accepted.
    Unauthorized(String),
    /// Apple does not accept what the project has for it: somebody must look; later.
    AppleRefuses(String),
    /// The account may not send: somebody must look; nothing more is sent for a while.
    Forbidden(String),
    /// This one device gets too many: it alone waits.
    DeviceQuota(Option<Duration>),
    /// The project sends too much: everything waits.
    Quota(Option<Duration>),
    /// FCM has too much to do: everything waits.
    Overloaded(Option<Duration>),
    /// FCM failed with this push; later.
    Failed(String),
}

/// Longest part of FCM's own words that is kept, in characters.
const WORDS_MAX: usize = 300;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    error: Problem,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Problem {
    message: String,
    status: String,
    details: Vec<Detail>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Detail {
    #[serde(rename = "@type")]
    kind: String,
    #[serde(rename = "errorCode")]
    error_code: String,
    #[serde(rename = "fieldViolations")]
    field_violations: Vec<Violation>,
    violations: Vec<QuotaViolation>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Violation {
    field: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct QuotaViolation {
    subject: String,
    description: String,
}

/// Judges an answer by its status, its body and what `Retry-After` says.
pub(super) fn judge(status: u16, body: &[u8], retry_after: Option<Duration>) -> Verdict {
    if (200..300).contains(&status) {
        return Verdict::Taken;
    }
    // HTML of a proxy is as good as no body.
    let problem = serde_json::from_slice::<Body>(body)
        .unwrap_or_default()
        .error;
    let words = problem.words(status);
    match (status, problem.error_code()) {
        (404, "UNREGISTERED") => Verdict::TokenGone,
        (400, "INVALID_ARGUMENT") if problem.names_the_token() => Verdict::TokenGone,
        (401, "THIRD_PARTY_AUTH_ERROR") => Verdict::AppleRefuses(words),
        (401, _) => Verdict::Unauthorized(words),
        (403, "SENDER_ID_MISMATCH") => Verdict::OtherSender(words),
        // 404 without a code: there is no such project.
        (403 | 404, _) => Verdict::Forbidden(words),
        (429, _) if problem.is_about_a_device() => Verdict::DeviceQuota(retry_after),
        (429, _) => Verdict::Quota(retry_after),
        (503, _) => Verdict::Overloaded(retry_after),
        (400..500, _) => Verdict::Refused(words),
        _ if retry_after.is_some() => Verdict::Overloaded(retry_after),
        _ => Verdict::Failed(words),
    }
}

impl Problem {
    fn error_code(&self) -> &str {
        let mut codes = self.details.iter().filter(|detail| detail.is_fcm_error());
        codes.next().map_or("", |detail| detail.error_code.as_str())
    }

    /// True when it is the token that is wrong, and nothing else.
    ///
    /// A wrong payload has the same status; it may even be the same code. Deleting a good token
    /// for it would cut a user off, so both must say so: the code, and the words or the field.
    fn names_the_token(&self) -> bool {
        let mut fields = self.details.iter().flat_map(|d| &d.field_violations);
        let is_about_token = |violation: &Violation| violation.field == "message.token";
        let has_fields = fields.clone().next().is_some();
        if has_fields {
            return fields.all(is_about_token);
        }
        self.message
            .to_ascii_lowercase()
            .contains("registration token")
    }

    /// Quotas of one device have the same code as those of the project.
    fn is_about_a_device(&self) -> bool {
        let mut violations = self.details.iter().flat_map(|detail| &detail.violations);
        violations.any(|violation| {
            let text = format!("{} {}", violation.subject, violation.description);
            text.to_ascii_lowercase().contains("device")
        })
    }

    fn words(&self, status: u16) -> String {
        let code = self.error_code();
        let status = status.to_string();
        let parts = [&status, &self.status, code, &self.message].map(str::trim);
        let mut parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.dedup();
        parts.join(" ").chars().take(WORDS_MAX).collect()
    }
}

impl Detail {
    fn is_fcm_error(&self) -> bool {
        self.kind.ends_with("google.firebase.fcm.v1.FcmError")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const FCM: &str = "type.googleapis.com/google.firebase.fcm.v1.FcmError";
    const BAD_REQUEST: &str = "type.googleapis.com/google.rpc.BadRequest";
    const QUOTA: &str = "type.googleapis.com/google.rpc.QuotaFailure";

    fn judged(status: u16, message: &str, details: Value) -> Verdict {
        let body = json!({ "error": {
            "code": status, "message": message, "status": "STATUS", "details": details,
        } });
        judge(status, body.to_string().as_bytes(), None)
    }

    fn code(code: &str) -> Value {
        json!([{ "@type": FCM, "errorCode": code }])
    }

    #[test]
    fn only_what_names_the_token_deletes_it() {
        let bad_token = "The registration token is not a valid FCM registration token";
        let field = |name: &str| json!({ "@type": BAD_REQUEST, "fieldViolations": [{ "field": name, "description": bad_token }] });
        let fcm = json!({ "@type": FCM, "errorCode": "INVALID_ARGUMENT" });
        let gone = [
            judged(404, "Requested entity was not found.", code("UNREGISTERED")),
            judged(400, bad_token, code("INVALID_ARGUMENT")),
            judged(400, "", json!([fcm.clone(), field("message.token")])),
        ];
        assert!(
            gone.iter().all(|verdict| *verdict == Verdict::TokenGone),
            "{gone:?}"
        );
        let kept = [
            judged(400, bad_token, json!([field("message.token")])),
            judged(
                400,
                bad_token,
                json!([fcm.clone(), field("message.data[0].value")]),
            ),
            judged(400, "Message too big", code("INVALID_ARGUMENT")),
            judged(400, "Message too big", json!([])),
            judged(400, bad_token, json!(null)),
        ];
        let is_refused = |verdict: &Verdict| matches!(verdict, Verdict::Refused(_));
        assert!(kept.iter().all(is_refused), "{kept:?}");
        // No such project: nothing is said about the token.
        let no_project = judged(404, "not found", json!([]));
        assert!(matches!(no_project, Verdict::Forbidden(_)));
    }

    #[test]
    fn every_row_of_the_table_has_its_verdict() {
        let text = |verdict: Verdict| format!("{verdict:?}");
        let names = [
            (judged(401, "", json!([])), "Unauthorized"),
            (
                judged(401, "", code("THIRD_PARTY_AUTH_ERROR")),
                "AppleRefuses",
            ),
            (judged(403, "", code("SENDER_ID_MISMATCH")), "OtherSender"),
            (judged(403, "", json!([])), "Forbidden"),
            (judged(429, "", code("QUOTA_EXCEEDED")), "Quota(None"),
            (
                judged(
                    429,
                    "",
                    json!([{ "@type": QUOTA, "violations": [{ "subject": "device:x" }] }]),
                ),
                "DeviceQuota",
            ),
            (judged(503, "", code("UNAVAILABLE")), "Overloaded(None"),
            (
                judged(500, "", code("INTERNAL")),
                "Failed(\"500 STATUS INTERNAL",
            ),
            (judged(413, "", json!([])), "Refused"),
            (
                judge(502, b"<html>Bad Gateway</html>", None),
                "Failed(\"502\"",
            ),
            (judge(400, b"\xff<html>", None), "Refused(\"400\""),
            (
                judge(429, b"", Some(Duration::from_secs(7))),
                "Quota(Some(7s",
            ),
            (
                judge(500, b"", Some(Duration::from_secs(7))),
                "Overloaded(Some(7s",
            ),
            (judge(200, b"", None), "Taken"),
        ];
        for (verdict, name) in names {
            let verdict = text(verdict);
            assert!(verdict.starts_with(name), "{verdict} is not {name}");
        }
    }
}
