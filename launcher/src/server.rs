//! The server that receives messages of ranks. It closes connections without the token of the job and those that send
//! anything but messages.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arinar_protocol::{BEAT_EVERY, Hello, LONGEST_LINE, Message};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, mpsc, watch},
};

use crate::rank_message::{IncomingMessage, RankMessage};

/// Maximum time between accepting a connection and its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of connections that have not sent a hello. Further connections wait.
const MAX_PENDING: usize = 64;
/// Capacity of the queue of received messages.
const QUEUE: usize = 4096;

/// The ranks that may connect.
#[derive(Debug, Default)]
struct Admission {
    /// Token of the job. If it is empty, every connection is rejected.
    token: String,
    attempt: u32,
    world: usize,
    /// Ranks that have connected.
    connected: BTreeSet<usize>,
}

impl Admission {
    /// Admits a rank of the current start that has not connected before.
    fn admit(&mut self, hello: &Hello) -> bool {
        let valid = !self.token.is_empty() && hello.token == self.token && hello.world == self.world;
        valid && hello.rank < self.world && self.connected.insert(hello.rank)
    }
}

/// A handle to the server, which runs as long as the process.
#[derive(Debug)]
pub(crate) struct Server {
    admission: Arc<Mutex<Admission>>,
    /// The start whose ranks may stay connected; 0 for none.
    attempt: watch::Sender<u32>,
    /// The port that the server listens on.
    pub(crate) port: u16,
}

impl Server {
    /// Starts the server on this address and returns a receiver for the messages of all ranks.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub(crate) async fn start(address: SocketAddr) -> io::Result<(Self, mpsc::Receiver<IncomingMessage>)> {
        let listener = TcpListener::bind(address).await?;
        let port = listener.local_addr()?.port();
        let (messages, received) = mpsc::channel(QUEUE);
        let admission = Arc::new(Mutex::new(Admission::default()));
        let (attempt, changes) = watch::channel(0);
        tokio::spawn(accept(listener, Arc::clone(&admission), changes, messages));
        Ok((Self { admission, attempt, port }, received))
    }

    /// Admits the ranks of this start, and disconnects those of earlier starts.
    pub(crate) fn expect(&self, token: &str, attempt: u32, world: usize) {
        *lock(&self.admission) = Admission { token: token.to_owned(), attempt, world, connected: BTreeSet::new() };
        self.attempt.send_replace(attempt);
    }

    /// Disconnects all ranks, so that a rank that has outlived its job on another host exits.
    pub(crate) fn disconnect_all(&self) {
        *lock(&self.admission) = Admission::default();
        self.attempt.send_replace(0);
    }
}

// No code panics while it holds the lock.
fn lock(admission: &Mutex<Admission>) -> MutexGuard<'_, Admission> {
    admission.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(
    listener: TcpListener,
    admission: Arc<Mutex<Admission>>,
    attempt: watch::Receiver<u32>,
    messages: mpsc::Sender<IncomingMessage>,
) {
    let pending = Arc::new(Semaphore::new(MAX_PENDING));
    loop {
        let Ok(permit) = Arc::clone(&pending).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (admission, attempt, messages) = (Arc::clone(&admission), attempt.clone(), messages.clone());
                tokio::spawn(async move {
                    let connection = tokio::time::timeout(HELLO_TIMEOUT, greet(stream, &admission)).await;
                    drop(permit);
                    if let Ok(Some(connection)) = connection {
                        connection.serve(attempt, &messages).await;
                    }
                });
            }
            // For example, file descriptors have run out. Other connections will be closed.
            Err(_) => tokio::time::sleep(BEAT_EVERY).await,
        }
    }
}

/// The connection of an admitted rank.
struct Connection {
    attempt: u32,
    hello: Hello,
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

/// Waits for the hello of a connection. Returns `None` if it is not admitted.
async fn greet(stream: TcpStream, admission: &Mutex<Admission>) -> Option<Connection> {
    let _ = stream.set_nodelay(true);
    let (reader, writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let Message::Hello(hello) = read_message(&mut reader).await? else { return None };
    let mut admission = lock(admission);
    admission.admit(&hello).then(|| Connection { attempt: admission.attempt, hello, reader, writer })
}

impl Connection {
    /// Forwards the messages of the rank and answers them, until the connection closes or `current` is another start.
    async fn serve(self, mut current: watch::Receiver<u32>, messages: &mpsc::Sender<IncomingMessage>) {
        let Self { attempt, hello, mut reader, writer } = self;
        let rank = hello.rank;
        let answers = tokio::spawn(answer(writer));
        let mut message = RankMessage::Hello(hello);
        while messages.send(IncomingMessage { attempt, rank, message }).await.is_ok() {
            let received = tokio::select! {
                received = read_message(&mut reader) => received,
                _ = current.wait_for(|current| *current != attempt) => None,
            };
            message = match received {
                Some(Message::Beat(beat)) => RankMessage::Beat(beat),
                Some(Message::Farewell(farewell)) => RankMessage::Farewell(farewell),
                Some(Message::Hello(_)) | None => break,
            };
        }
        answers.abort();
        let _ = messages.send(IncomingMessage { attempt, rank, message: RankMessage::Closed }).await;
    }
}

async fn answer(mut writer: OwnedWriteHalf) {
    while writer.write_all(b"\n").await.is_ok() {
        tokio::time::sleep(BEAT_EVERY).await;
    }
}

/// Reads the next message. Returns `None` at the end of the connection and for anything that is not a message.
async fn read_message(reader: &mut BufReader<OwnedReadHalf>) -> Option<Message> {
    let mut line = Vec::new();
    reader.take(LONGEST_LINE as u64).read_until(b'\n', &mut line).await.ok()?;
    let text = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    Message::parse(text).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use arinar_protocol::Beat;

    use super::*;

    fn hello(rank: usize, token: &str) -> Message {
        Message::Hello(Hello { token: token.to_owned(), rank, world: 2, host: "node".to_owned(), pid: 7 })
    }

    async fn connect(port: u16) -> TcpStream {
        TcpStream::connect(("127.0.0.1", port)).await.unwrap()
    }

    /// Sends text, and waits until the server closes the connection without an answer.
    async fn assert_rejected(port: u16, text: &[u8]) {
        let mut stream = connect(port).await;
        // The server may close the connection before everything is sent.
        let _ = stream.write_all(text).await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "{rest:?}");
    }

    #[tokio::test]
    async fn only_ranks_of_the_job_are_admitted() {
        let (server, mut messages) = Server::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        assert_rejected(server.port, hello(0, "").line().as_bytes()).await;
        server.expect("secret", 3, 2);
        for text in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"\n".to_vec(),
            b"\xff\xfe\n".to_vec(),
            vec![b'x'; 4 * LONGEST_LINE],
            hello(0, "wrong").line().into_bytes(),
            hello(2, "secret").line().into_bytes(),
            Message::Beat(Beat::default()).line().into_bytes(),
        ] {
            assert_rejected(server.port, &text).await;
        }
        let mut rank = connect(server.port).await;
        rank.write_all(hello(1, "secret").line().as_bytes()).await.unwrap();
        assert!(matches!(
            messages.recv().await.unwrap(),
            IncomingMessage { attempt: 3, rank: 1, message: RankMessage::Hello(_) }
        ));
        assert_rejected(server.port, hello(1, "secret").line().as_bytes()).await;
        // The server answers unasked, and accepts a message in pieces.
        assert_eq!(rank.read_u8().await.unwrap(), b'\n');
        let beat = Message::Beat(Beat { step: 9, ..Beat::default() }).line();
        let (first, rest) = beat.split_at(beat.len() / 2);
        rank.write_all(first.as_bytes()).await.unwrap();
        assert_eq!(rank.read_u8().await.unwrap(), b'\n');
        rank.write_all(rest.as_bytes()).await.unwrap();
        let RankMessage::Beat(beat) = messages.recv().await.unwrap().message else { panic!("not a heartbeat") };
        assert_eq!(beat.step, 9);
        rank.write_all(b"garbage\n").await.unwrap();
        assert_eq!(
            messages.recv().await.unwrap(),
            IncomingMessage { attempt: 3, rank: 1, message: RankMessage::Closed }
        );
    }

    #[tokio::test]
    async fn ranks_of_an_ended_job_are_disconnected() {
        let (server, mut messages) = Server::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        for attempt in [1, 2] {
            server.expect("secret", attempt, 2);
            let mut rank = connect(server.port).await;
            rank.write_all(hello(1, "secret").line().as_bytes()).await.unwrap();
            assert!(matches!(messages.recv().await.unwrap().message, RankMessage::Hello(_)));
            if attempt == 1 {
                server.disconnect_all()
            } else {
                server.expect("other", 3, 2)
            }
            let mut answers = Vec::new();
            rank.read_to_end(&mut answers).await.unwrap();
            assert_eq!(
                messages.recv().await.unwrap(),
                IncomingMessage { attempt, rank: 1, message: RankMessage::Closed }
            );
        }
        server.disconnect_all();
        assert_rejected(server.port, hello(0, "").line().as_bytes()).await;
    }

    #[tokio::test]
    async fn silent_connections_do_not_keep_ranks_out() {
        let (server, mut messages) = Server::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        server.expect("secret", 1, 2);
        let mut crowd = Vec::new();
        for _ in 0..MAX_PENDING / 2 {
            crowd.push(connect(server.port).await);
        }
        let mut rank = connect(server.port).await;
        rank.write_all(hello(0, "secret").line().as_bytes()).await.unwrap();
        assert_eq!(messages.recv().await.unwrap().rank, 0);
    }
}
