//! A toy cluster: gateways over one in-memory broker, written from the protocol's page alone.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use loadtest::client::Endpoint;

/// Messages that wait to be written to one client; a fuller queue would be a bug of the test.
const QUEUE_MAX: usize = 100_000;

/// What the toy does wrong on purpose.
#[derive(Debug, Default, Clone)]
pub(crate) struct Faults {
    /// The delivery with this number is not made.
    pub(crate) lost_delivery: Option<usize>,
    /// The delivery with this number is made twice.
    pub(crate) doubled_delivery: Option<usize>,
    /// Publications of these offsets change places for the first subscriber.
    pub(crate) swapped_offset: Option<u64>,
    /// The archive does not show this offset.
    pub(crate) lost_row: Option<u64>,
    /// The archive shows this offset twice.
    pub(crate) doubled_row: Option<u64>,
    /// Recovery claims success and hands over nothing.
    pub(crate) false_recovery: bool,
    /// Recovery is always refused, honestly.
    pub(crate) no_recovery: bool,
    /// Every so many-th first try of a send is carried out, but not answered.
    pub(crate) unanswered_send: Option<usize>,
    /// A key is forgotten at once, so that a retry publishes again.
    pub(crate) forgets_keys: bool,
}

/// What all gateways share: broker and archive in one.
#[derive(Default)]
struct Broker {
    channels: HashMap<String, Channel>,
    faults: Faults,
    deliveries: usize,
    sends: usize,
}

#[derive(Default)]
struct Channel {
    history: Vec<Stored>,
    keys: HashMap<String, u64>,
    subscribers: HashMap<u64, mpsc::Sender<String>>,
}

#[derive(Clone)]
struct Stored {
    id: String,
    offset: u64,
    user: String,
    data: Box<RawValue>,
}

const EPOCH: &str = "TOYepoch";

impl Stored {
    fn publication(&self) -> Value {
        json!({"data": self.data, "offset": self.offset, "tags": {"id": self.id},
               "info": {"user": self.user, "client": "toy"}})
    }
}

impl Broker {
    fn publish(&mut self, channel: &str, user: &str, data: &RawValue, key: &str) -> (Value, bool) {
        self.sends += 1;
        let faults = self.faults.clone();
        let state = self.channels.entry(channel.to_owned()).or_default();
        let known = state.keys.get(key).copied();
        let offset = known.unwrap_or(state.history.len() as u64 + 1);
        if known.is_none() {
            let stored = Stored {
                id: format!("{channel}/{offset}"),
                offset,
                user: user.to_owned(),
                data: data.to_owned(),
            };
            if !faults.forgets_keys && !key.is_empty() {
                state.keys.insert(key.to_owned(), offset);
            }
            state.history.push(stored);
            self.fan_out(channel, offset);
        }
        let is_first = known.is_none();
        let unanswered = faults
            .unanswered_send
            .is_some_and(|every| is_first && self.sends.is_multiple_of(every));
        let answer = json!({"id": format!("{channel}/{offset}"), "epoch": EPOCH,
                            "offset": offset, "time": 0});
        (answer, !unanswered)
    }

    fn fan_out(&mut self, channel: &str, offset: u64) {
        let faults = self.faults.clone();
        let Some(state) = self.channels.get_mut(channel) else {
            return;
        };
        let index = usize::try_from(offset).unwrap() - 1;
        let push = |stored: &Stored| {
            json!({"push": {"channel": channel, "pub": stored.publication()}}).to_string()
        };
        let first = state.subscribers.keys().min().copied();
        let mut sessions: Vec<u64> = state.subscribers.keys().copied().collect();
        sessions.sort_unstable();
        for session in sessions {
            let mut pushes = vec![push(&state.history[index])];
            if Some(session) == first {
                match faults.swapped_offset {
                    Some(swapped) if swapped == offset => pushes.clear(),
                    // The later one keeps its right place and takes the earlier one's data along.
                    Some(swapped) if swapped + 1 == offset => {
                        pushes.push(push(&state.history[index - 1]));
                    }
                    _ => {}
                }
            }
            self.deliveries += 1;
            if faults.lost_delivery == Some(self.deliveries) {
                pushes.clear();
            }
            if faults.doubled_delivery == Some(self.deliveries) {
                pushes.extend(pushes.clone());
            }
            for push in pushes {
                if state.subscribers[&session].try_send(push).is_err() {
                    state.subscribers.remove(&session);
                    break;
                }
            }
        }
    }

    fn subscribe(&mut self, session: &Session, request: &Value) -> Value {
        let faults = self.faults.clone();
        let channel = request["channel"].as_str().unwrap();
        let state = self.channels.entry(channel.to_owned()).or_default();
        state
            .subscribers
            .insert(session.number, session.queue.clone());
        let top = state.history.len() as u64;
        let asked = request["offset"].as_u64().unwrap_or(0);
        let recovers = request["recover"].as_bool().unwrap_or(false);
        let is_known = request["epoch"].as_str().unwrap_or("") == EPOCH && asked <= top;
        let mut result = json!({"recoverable": true, "positioned": true, "epoch": EPOCH});
        if recovers {
            result["was_recovering"] = json!(true);
        }
        if recovers && is_known && !faults.no_recovery {
            result["recovered"] = json!(true);
            result["offset"] = json!(asked);
            if !faults.false_recovery {
                let missed = &state.history[usize::try_from(asked).unwrap()..];
                result["publications"] = missed.iter().map(Stored::publication).collect();
            }
        } else {
            result["offset"] = json!(top);
        }
        result
    }

    fn list(&self, request: &Value) -> Value {
        let channel = request["channel"].as_str().unwrap();
        let after = request["after"].as_u64().unwrap_or(0);
        let limit = usize::try_from(request["limit"].as_u64().unwrap()).unwrap();
        let history = self
            .channels
            .get(channel)
            .map_or(&[][..], |state| &state.history);
        let mut rows = Vec::new();
        for stored in history.iter().filter(|stored| stored.offset > after) {
            let times = match stored.offset {
                offset if self.faults.lost_row == Some(offset) => 0,
                offset if self.faults.doubled_row == Some(offset) => 2,
                _ => 1,
            };
            let row = json!({"id": stored.id, "epoch": EPOCH, "offset": stored.offset,
                             "user": stored.user, "data": stored.data, "time": 0});
            rows.extend(std::iter::repeat_n(row, times));
        }
        rows.truncate(limit);
        json!({"messages": rows})
    }
}

/// Some gateways over one broker.
pub(crate) struct ToyCluster {
    broker: Arc<Mutex<Broker>>,
    gateways: Vec<ToyGateway>,
}

struct ToyGateway {
    address: SocketAddr,
    /// Connections and the listener; dropped all at once by a kill.
    tasks: JoinSet<()>,
}

impl ToyCluster {
    pub(crate) async fn start(gateways: usize, faults: Faults) -> Self {
        let broker = Arc::new(Mutex::new(Broker {
            faults,
            ..Broker::default()
        }));
        let mut cluster = Self {
            broker,
            gateways: Vec::new(),
        };
        for _ in 0..gateways {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            let listener = TcpListener::bind(any).await.unwrap();
            let gateway = serve(listener, &cluster.broker);
            cluster.gateways.push(gateway);
        }
        cluster
    }

    pub(crate) fn endpoints(&self) -> Vec<Endpoint> {
        self.gateways
            .iter()
            .map(|gateway| {
                let url = format!("ws://{}", gateway.address);
                url.parse::<Endpoint>().unwrap().websocket()
            })
            .collect()
    }

    /// Drops a gateway's connections and listener, as `kill -9` does.
    pub(crate) async fn kill(&mut self, gateway: usize) {
        self.gateways[gateway].tasks.shutdown().await;
    }

    /// Starts a killed gateway again, at its address.
    pub(crate) async fn restart(&mut self, gateway: usize) {
        let listener = TcpListener::bind(self.gateways[gateway].address)
            .await
            .unwrap();
        self.gateways[gateway] = serve(listener, &self.broker);
    }
}

fn serve(listener: TcpListener, broker: &Arc<Mutex<Broker>>) -> ToyGateway {
    let address = listener.local_addr().unwrap();
    let broker = Arc::clone(broker);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        // Ends the connections when it is dropped.
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(connection(stream, Arc::clone(&broker)));
        }
    });
    ToyGateway { address, tasks }
}

async fn connection(stream: TcpStream, broker: Arc<Mutex<Broker>>) {
    let (upgrades, mut upgraded) = mpsc::channel(1);
    let requests = service_fn(|request| {
        let broker = Arc::clone(&broker);
        let upgrades = upgrades.clone();
        async move { answer(request, broker, upgrades).await }
    });
    let http = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), requests)
        .with_upgrades();
    if http.await.is_ok()
        && let Ok(upgrade) = upgraded.try_recv()
    {
        let upgrade: fastwebsockets::upgrade::UpgradeFut = upgrade;
        if let Ok(socket) = upgrade.await {
            Session::new(socket.into_inner(), broker).run().await;
        }
    }
}

async fn answer(
    mut request: Request<Incoming>,
    broker: Arc<Mutex<Broker>>,
    upgrades: mpsc::Sender<fastwebsockets::upgrade::UpgradeFut>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let respond = |status, body: String| {
        Ok(Response::builder()
            .status(status)
            .body(Full::from(body))
            .unwrap())
    };
    match request.uri().path() {
        "/readyz" => respond(StatusCode::OK, "{}".to_owned()),
        "/api/publish" => {
            let has_key = request
                .headers()
                .get("x-api-key")
                .is_some_and(|key| key == "toy-key");
            if !has_key {
                return respond(StatusCode::UNAUTHORIZED, String::new());
            }
            let body = request.into_body().collect().await?.to_bytes();
            let body: Value = serde_json::from_slice(&body).unwrap();
            let data = serde_json::value::to_raw_value(&body["data"]).unwrap();
            let channel = body["channel"].as_str().unwrap();
            let (result, _) = broker.lock().publish(channel, "", &data, "");
            respond(StatusCode::OK, json!({ "result": result }).to_string())
        }
        "/connection/websocket" => {
            let (response, upgrade) = fastwebsockets::upgrade::upgrade(&mut request).unwrap();
            upgrades.try_send(upgrade).unwrap();
            Ok(response.map(|_| Full::default()))
        }
        _ => respond(StatusCode::NOT_FOUND, String::new()),
    }
}

/// One client's connection to the toy.
struct Session {
    number: u64,
    user: String,
    queue: mpsc::Sender<String>,
    outgoing: Option<mpsc::Receiver<String>>,
    socket: Option<TokioIo<hyper::upgrade::Upgraded>>,
    broker: Arc<Mutex<Broker>>,
}

impl Session {
    fn new(socket: TokioIo<hyper::upgrade::Upgraded>, broker: Arc<Mutex<Broker>>) -> Self {
        static NUMBERS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let (queue, outgoing) = mpsc::channel(QUEUE_MAX);
        Self {
            number: NUMBERS.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            user: String::new(),
            queue,
            outgoing: Some(outgoing),
            socket: Some(socket),
            broker,
        }
    }

    async fn run(mut self) {
        let (mut reader, mut writer) = tokio::io::split(self.socket.take().unwrap());
        let mut outgoing = self.outgoing.take().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            while let Some(message) = outgoing.recv().await {
                if writer.write_all(&text_frame(&message)).await.is_err() {
                    return;
                }
            }
        });
        let mut answered_pings = 0;
        while let Some(payload) = read_masked(&mut reader).await {
            for command in std::str::from_utf8(&payload).unwrap().split('\n') {
                if command == "{}" {
                    answered_pings += 1;
                    assert_eq!(answered_pings, 1, "a second pong for one ping");
                    continue;
                }
                let Some(replies) = self.handle(command) else {
                    return;
                };
                for reply in replies {
                    self.queue.try_send(reply).unwrap();
                }
            }
        }
    }

    /// Returns the replies; `None` ends the connection.
    fn handle(&mut self, text: &str) -> Option<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct SendBody<'a> {
            channel: String,
            #[serde(borrow)]
            data: &'a RawValue,
            idempotency_key: String,
        }
        let command: Value = serde_json::from_str(text).unwrap();
        let id = &command["id"];
        let broker = Arc::clone(&self.broker);
        let mut broker = broker.lock();
        if let Some(connect) = command.get("connect") {
            self.user = user_of(connect["token"].as_str()?)?;
            let reply = json!({"id": id, "connect":
                {"client": format!("toy-{}", self.number), "version": "toy", "ping": 25, "pong": true}});
            // A ping comes along at once: it must be answered, once.
            return Some(vec![reply.to_string(), "{}".to_owned()]);
        }
        if self.user.is_empty() {
            return None;
        }
        if let Some(request) = command.get("subscribe") {
            let result = broker.subscribe(self, request);
            return Some(vec![json!({"id": id, "subscribe": result}).to_string()]);
        }
        let rpc = command.get("rpc")?;
        let (data, is_answered) = match rpc["method"].as_str()? {
            "message.send" => {
                // Read from the text again: a value would not keep the data's own bytes.
                let start = text.find("\"data\":")? + 7;
                let body = text.get(start..)?.strip_suffix("}}")?;
                let body: SendBody<'_> = serde_json::from_str(body).ok()?;
                broker.publish(&body.channel, &self.user, body.data, &body.idempotency_key)
            }
            "message.list" => (broker.list(&rpc["data"]), true),
            _ => {
                let error = json!({"code": 104, "message": "method not found"});
                return Some(vec![json!({"id": id, "error": error}).to_string()]);
            }
        };
        let reply = json!({"id": id, "rpc": {"data": data}}).to_string();
        Some(if is_answered { vec![reply] } else { Vec::new() })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        for channel in self.broker.lock().channels.values_mut() {
            channel.subscribers.remove(&self.number);
        }
    }
}

/// The user a token names; whether it is signed is the real gateway's business.
fn user_of(token: &str) -> Option<String> {
    use base64::Engine;
    let claims = token.split('.').nth(1)?;
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(claims)
        .ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    claims["sub"].as_str().map(ToOwned::to_owned)
}

fn text_frame(text: &str) -> Vec<u8> {
    let mut frame = vec![0x81];
    match text.len() {
        length @ 0..=125 => frame.push(u8::try_from(length).unwrap()),
        length @ 126..=65_535 => {
            frame.push(126);
            frame.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(text.as_bytes());
    frame
}

/// Reads one data frame of a client; `None` at the end.
async fn read_masked(reader: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let header = reader.read_u16().await.ok()?;
    assert_eq!(header & 0x80, 0x80, "client frames are masked");
    if header >> 8 == 0x88 {
        return None;
    }
    assert_eq!(header >> 8, 0x81, "clients send whole text frames");
    let length = match header & 0x7f {
        126 => u64::from(reader.read_u16().await.ok()?),
        127 => reader.read_u64().await.ok()?,
        short => u64::from(short),
    };
    let mut mask = [0; 4];
    reader.read_exact(&mut mask).await.ok()?;
    let mut payload = vec![0; usize::try_from(length).unwrap()];
    reader.read_exact(&mut payload).await.ok()?;
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
    Some(payload)
}
