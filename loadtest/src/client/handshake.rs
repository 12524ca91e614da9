//! The opening handshake of a WebSocket, as a client makes it (RFC 6455 §4.1).

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::endpoint::Endpoint;

/// The key of RFC 6455 §1.3 and its answer. A key need not be secret, only answered rightly, and
/// with a fixed one the answer is known without computing SHA-1 ten thousand times.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// Longest response header that is read.
const RESPONSE_BYTES_MAX: usize = 16 * 1024;

/// Why a WebSocket did not open.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection failed.
    #[error("connection failed during the handshake")]
    Io(#[from] std::io::Error),
    /// No answer in time.
    #[error("no answer to the handshake in time")]
    Timeout,
    /// The server refused before the upgrade.
    #[error("server answered the handshake with HTTP status {0}")]
    Status(u16),
    /// The answer is not that of a WebSocket server.
    #[error("answer to the handshake is not valid: {0}")]
    Invalid(&'static str),
}

/// Upgrades a TCP connection; returns the bytes that came after the response's header.
pub(crate) async fn upgrade(
    stream: &mut TcpStream,
    endpoint: &Endpoint,
    limit: Duration,
) -> Result<Vec<u8>, HandshakeError> {
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n",
        endpoint.path(),
        endpoint.authority(),
    );
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        read_response(stream).await
    };
    timeout(limit, exchange)
        .await
        .map_err(|_| HandshakeError::Timeout)?
}

async fn read_response(stream: &mut TcpStream) -> Result<Vec<u8>, HandshakeError> {
    let mut response = Vec::with_capacity(512);
    loop {
        if stream.read_buf(&mut response).await? == 0 {
            return Err(HandshakeError::Invalid("connection ended in the header"));
        }
        if let Some(end) = header_end(&response) {
            let rest = response.split_off(end);
            check_response(&response)?;
            return Ok(rest);
        }
        if response.len() > RESPONSE_BYTES_MAX {
            return Err(HandshakeError::Invalid("header is too long"));
        }
    }
}

fn header_end(response: &[u8]) -> Option<usize> {
    let end = response.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(end + 4)
}

fn check_response(header: &[u8]) -> Result<(), HandshakeError> {
    let header =
        std::str::from_utf8(header).map_err(|_| HandshakeError::Invalid("header is not text"))?;
    let mut lines = header.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .ok_or(HandshakeError::Invalid("no status line"))?;
    if status != 101 {
        return Err(HandshakeError::Status(status));
    }
    let is_accepted = lines
        .filter_map(|line| line.split_once(':'))
        .any(|(name, value)| {
            name.eq_ignore_ascii_case("sec-websocket-accept") && value.trim() == ACCEPT
        });
    if is_accepted {
        Ok(())
    } else {
        Err(HandshakeError::Invalid("wrong Sec-WebSocket-Accept"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_right_answer_passes() {
        let ok = format!("HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {ACCEPT}\r\n");
        assert!(check_response(ok.as_bytes()).is_ok());
        let busy = check_response(b"HTTP/1.1 503 Service Unavailable\r\n\r\n");
        assert!(matches!(busy, Err(HandshakeError::Status(503))));
        let other = check_response(b"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: no\r\n\r\n");
        assert!(matches!(other, Err(HandshakeError::Invalid(_))));
        assert!(check_response(b"\xff").is_err());
    }
}
