//! The public numbers of the protocol: errors, disconnects, unsubscribes. Never renumbered.

/// An error in a reply: the connection stays usable (except for errors of `connect`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientError {
    /// The public number.
    pub code: u32,
    /// The public text.
    pub message: &'static str,
    /// True when the client may repeat the same command later.
    pub temporary: bool,
}

macro_rules! client_errors {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $message:literal, $temporary:literal;)*) => {
        impl ClientError {
            $($(#[$doc])* pub const $name: Self =
                Self { code: $code, message: $message, temporary: $temporary };)*
        }
    };
}

client_errors! {
    /// A part of the server failed; the same command may succeed later.
    INTERNAL = 100, "internal server error", true;
    /// The client is not authenticated for this.
    UNAUTHORIZED = 101, "unauthorized", false;
    /// The channel's namespace is not configured.
    UNKNOWN_CHANNEL = 102, "unknown channel", false;
    /// No rule grants it.
    PERMISSION_DENIED = 103, "permission denied", false;
    /// There is no such RPC method.
    METHOD_NOT_FOUND = 104, "method not found", false;
    /// The client has this subscription already.
    ALREADY_SUBSCRIBED = 105, "already subscribed", false;
    /// Too many channels, or too large a request.
    LIMIT_EXCEEDED = 106, "limit exceeded", false;
    /// The command cannot be understood.
    BAD_REQUEST = 107, "bad request", false;
    /// The feature is off for this channel.
    NOT_AVAILABLE = 108, "not available", false;
    /// The token's `exp` has passed: the client fetches a new one.
    TOKEN_EXPIRED = 109, "token expired", false;
    /// `expire_at` has passed already.
    EXPIRED = 110, "expired", false;
    /// A limit on the rate was reached.
    TOO_MANY_REQUESTS = 111, "too many requests", true;
    /// The position belongs to another epoch, or is no longer kept.
    UNRECOVERABLE_POSITION = 112, "unrecoverable position", false;
    /// The same key was used for another payload.
    CONFLICT = 113, "conflict", false;
    /// What the request names is not there (a code of ours: applications own 400 and up).
    NOT_FOUND = 404, "not found", false;
}

/// Why the server ends a connection: the WebSocket close code and reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disconnect {
    /// The public number; SDKs give up on `3500..=3999` and `4500..=4999`, else reconnect.
    pub code: u16,
    /// Under 124 bytes, as a close frame needs.
    pub reason: std::borrow::Cow<'static, str>,
}

macro_rules! disconnects {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $reason:literal;)*) => {
        impl Disconnect {
            $($(#[$doc])* pub const $name: Self =
                Self { code: $code, reason: std::borrow::Cow::Borrowed($reason) };)*
        }
    };
}

disconnects! {
    /// The peer went away; never on the wire.
    CONNECTION_CLOSED = 3000, "connection closed";
    /// The node is stopping.
    SHUTDOWN = 3001, "shutdown";
    /// A part of the server failed while subscribing.
    SERVER_ERROR = 3004, "internal server error";
    /// The token was not refreshed in time.
    EXPIRED = 3005, "connection expired";
    /// A server-side subscription's token was not refreshed in time.
    SUBSCRIPTION_EXPIRED = 3006, "subscription expired";
    /// The client reads slower than it is written to.
    SLOW = 3008, "slow";
    /// Writing failed or took too long.
    WRITE_ERROR = 3009, "write error";
    /// The server cannot prove that nothing was missed.
    INSUFFICIENT_STATE = 3010, "insufficient state";
    /// The client is asked to connect anew.
    FORCE_RECONNECT = 3011, "force reconnect";
    /// No pong came in time.
    NO_PONG = 3012, "no pong";
    /// A limit on the rate was reached.
    TOO_MANY_REQUESTS = 3013, "too many requests";
    /// The token is malformed, or its signature is wrong.
    INVALID_TOKEN = 3500, "invalid token";
    /// The peer does not speak the protocol.
    BAD_REQUEST = 3501, "bad request";
    /// No `connect` came in time.
    STALE = 3502, "stale";
    /// The server API ended the connection.
    FORCE_DISCONNECT = 3503, "force disconnect";
    /// The user has too many connections.
    CONNECTION_LIMIT = 3504, "connection limit";
    /// The token names too many channels.
    CHANNEL_LIMIT = 3505, "channel limit";
    /// The rules do not let this client in.
    PERMISSION_DENIED = 3507, "permission denied";
    /// The command is not supported here.
    NOT_AVAILABLE = 3508, "not available";
}

/// Why the server ends one subscription, as a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscribe {
    /// The public number; SDKs subscribe again by themselves from 2500 on.
    pub code: u32,
    /// What a developer reads.
    pub reason: &'static str,
}

impl Unsubscribe {
    /// The server API ended the subscription.
    pub const SERVER: Self = Self {
        code: 2000,
        reason: "server unsubscribe",
    };
    /// The server cannot prove that nothing was missed: subscribe again and recover.
    pub const INSUFFICIENT_STATE: Self = Self {
        code: 2500,
        reason: "insufficient state",
    };
    /// The subscription's token was not refreshed in time.
    pub const EXPIRED: Self = Self {
        code: 2501,
        reason: "subscription expired",
    };
}
