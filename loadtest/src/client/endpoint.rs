//! Where a server is: `ws://` and `http://` addresses, and plain TCP connections to them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;

/// A server's address: host, port and path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    host: String,
    port: u16,
    path: String,
}

/// Path of the WebSocket endpoint when an address names none.
const WEBSOCKET_PATH: &str = "/connection/websocket";

impl Endpoint {
    /// Returns the address with its path replaced.
    #[must_use]
    pub fn with_path(&self, path: &str) -> Self {
        Self {
            path: path.to_owned(),
            ..self.clone()
        }
    }

    /// Returns the address as a WebSocket endpoint: an address without a path gets the usual one.
    #[must_use]
    pub fn websocket(&self) -> Self {
        match self.path.as_str() {
            "" | "/" => self.with_path(WEBSOCKET_PATH),
            _ => self.clone(),
        }
    }

    /// Returns `host:port`, as the `Host` header wants it.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Returns the path, beginning with `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Opens a TCP connection, from the given local address when there is one.
    ///
    /// # Errors
    /// When the name is unknown, or nobody answers within `limit`.
    pub async fn connect(
        &self,
        from: Option<IpAddr>,
        limit: Duration,
    ) -> std::io::Result<TcpStream> {
        let stream = timeout(limit, self.connect_unbounded(from)).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn connect_unbounded(&self, from: Option<IpAddr>) -> std::io::Result<TcpStream> {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        let mut failure = std::io::ErrorKind::NotFound.into();
        for address in lookup_host((host, self.port)).await? {
            match connect_address(address, from).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

async fn connect_address(address: SocketAddr, from: Option<IpAddr>) -> std::io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    socket.connect(address).await
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}{}", self.host, self.port, self.path)
    }
}

/// An address that this tool cannot use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// The text is not an address.
    #[error("{0:?} is not an address such as ws://host:8000/connection/websocket")]
    Malformed(String),
    /// TLS is not spoken here.
    #[error("{0:?} wants TLS, which the load test does not speak: use the plain port")]
    Tls(String),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || EndpointError::Malformed(text.to_owned());
        let uri = hyper::Uri::from_str(text).map_err(|_| malformed())?;
        match uri.scheme_str() {
            Some("ws" | "http") => {}
            Some("wss" | "https") => return Err(EndpointError::Tls(text.to_owned())),
            _ => return Err(malformed()),
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            host: uri.host().ok_or_else(malformed)?.to_owned(),
            port: uri.port_u16().unwrap_or(80),
            path: path.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_a_path() {
        let full: Endpoint = "ws://a.example:8000/connection/websocket?x=1"
            .parse()
            .unwrap();
        assert_eq!(full.to_string(), "a.example:8000/connection/websocket?x=1");
        let bare: Endpoint = "http://127.0.0.1:9".parse().unwrap();
        assert_eq!(
            bare.websocket().to_string(),
            "127.0.0.1:9/connection/websocket"
        );
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        assert!(matches!(
            "wss://a".parse::<Endpoint>(),
            Err(EndpointError::Tls(_))
        ));
        for bad in ["", "a", "ftp://a", "ws://"] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}
