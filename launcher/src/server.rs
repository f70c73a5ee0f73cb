//! Listens to ranks. Whoever does not know the token, or sends what is no message, is hung up on.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arinar_protocol::{BEAT_EVERY, Beat, Farewell, Hello, LONGEST_LINE, Message};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{Semaphore, mpsc, watch},
};

/// Whoever connects has so long for the hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections without a hello at one time; further ones wait for their turn.
const STRANGERS: usize = 64;
/// Messages that wait to be read by the launcher.
const QUEUE: usize = 4096;

/// What a rank said, or that it says nothing more.
#[derive(Clone, Debug, PartialEq)]
pub enum Word {
    /// Its first word.
    Hello(Hello),
    /// How far it is.
    Beat(Beat),
    /// Its last word.
    Farewell(Farewell),
    /// Its connection has ended.
    Closed,
}

/// A word, whose it is, and of which start of the job.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The start.
    pub attempt: u32,
    /// The rank.
    pub rank: usize,
    /// The word.
    pub word: Word,
}

/// Whom the server lets in.
#[derive(Debug, Default)]
struct Guests {
    token: String,
    attempt: u32,
    world: usize,
    known: BTreeSet<usize>,
}

/// The server; it runs as long as the process.
#[derive(Debug)]
pub struct Server {
    guests: Arc<Mutex<Guests>>,
    /// The start whose ranks are listened to.
    attempt: watch::Sender<u32>,
    /// Its port.
    pub port: u16,
}

impl Server {
    /// Listens on a free port of this address.
    ///
    /// # Errors
    /// The address cannot be used.
    pub async fn start(address: SocketAddr) -> io::Result<(Self, mpsc::Receiver<Event>)> {
        let listener = TcpListener::bind(address).await?;
        let port = listener.local_addr()?.port();
        let (events, received) = mpsc::channel(QUEUE);
        let guests = Arc::new(Mutex::new(Guests::default()));
        let (attempt, changes) = watch::channel(0);
        tokio::spawn(accept(listener, Arc::clone(&guests), changes, events));
        Ok((Self { guests, attempt, port }, received))
    }

    /// From now on ranks of this start are let in, and those of earlier ones are hung up on.
    pub fn expect(&self, token: &str, attempt: u32, world: usize) {
        *lock(&self.guests) = Guests { token: token.to_owned(), attempt, world, known: BTreeSet::new() };
        self.attempt.send_replace(attempt);
    }

    /// Hangs up on all ranks: one that outlives its job, on a machine that nobody sees, ends itself then.
    pub fn dismiss(&self) {
        *lock(&self.guests) = Guests::default();
        self.attempt.send_replace(0);
    }
}

// Nothing panics while it holds the lock.
fn lock(guests: &Mutex<Guests>) -> MutexGuard<'_, Guests> {
    guests.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(
    listener: TcpListener,
    guests: Arc<Mutex<Guests>>,
    attempt: watch::Receiver<u32>,
    events: mpsc::Sender<Event>,
) {
    let room = Arc::new(Semaphore::new(STRANGERS));
    loop {
        let Ok(turn) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (guests, attempt, events) = (Arc::clone(&guests), attempt.clone(), events.clone());
                tokio::spawn(async move {
                    let welcomed = tokio::time::timeout(HELLO_TIMEOUT, welcome(stream, &guests)).await;
                    drop(turn);
                    if let Ok(Some(guest)) = welcomed {
                        guest.listen(attempt, &events).await;
                    }
                });
            }
            // As when file descriptors are short: others will end.
            Err(_) => tokio::time::sleep(BEAT_EVERY).await,
        }
    }
}

/// A rank that was let in.
struct Guest {
    attempt: u32,
    hello: Hello,
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

async fn welcome(stream: TcpStream, guests: &Mutex<Guests>) -> Option<Guest> {
    let _ = stream.set_nodelay(true);
    let (reader, writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let Message::Hello(hello) = read_message(&mut reader).await? else { return None };
    let mut guests = lock(guests);
    let right = !guests.token.is_empty() && hello.token == guests.token && hello.world == guests.world;
    let admitted = right && hello.rank < guests.world && guests.known.insert(hello.rank);
    admitted.then(|| Guest { attempt: guests.attempt, hello, reader, writer })
}

impl Guest {
    /// Passes on all that the rank says, and answers, until the connection ends or another start is `wanted`.
    async fn listen(self, mut wanted: watch::Receiver<u32>, events: &mpsc::Sender<Event>) {
        let Self { attempt, hello, mut reader, writer } = self;
        let rank = hello.rank;
        let answers = tokio::spawn(answer(writer));
        let mut word = Word::Hello(hello);
        while events.send(Event { attempt, rank, word }).await.is_ok() {
            let message = tokio::select! {
                message = read_message(&mut reader) => message,
                _ = wanted.wait_for(|wanted| *wanted != attempt) => None,
            };
            word = match message {
                Some(Message::Beat(beat)) => Word::Beat(beat),
                Some(Message::Farewell(farewell)) => Word::Farewell(farewell),
                Some(Message::Hello(_)) | None => break,
            };
        }
        answers.abort();
        let _ = events.send(Event { attempt, rank, word: Word::Closed }).await;
    }
}

async fn answer(mut writer: OwnedWriteHalf) {
    while writer.write_all(b"\n").await.is_ok() {
        tokio::time::sleep(BEAT_EVERY).await;
    }
}

/// The next message; `None` where there is none, or what came is none.
async fn read_message(reader: &mut BufReader<OwnedReadHalf>) -> Option<Message> {
    let mut line = Vec::new();
    reader.take(LONGEST_LINE as u64).read_until(b'\n', &mut line).await.ok()?;
    let text = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    Message::parse(text).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn hello(rank: usize, token: &str) -> Message {
        Message::Hello(Hello { token: token.to_owned(), rank, world: 2, host: "node".to_owned(), pid: 7 })
    }

    async fn connect(port: u16) -> TcpStream {
        TcpStream::connect(("127.0.0.1", port)).await.unwrap()
    }

    /// Sends text, and waits until the server hangs up.
    async fn hung_up_on(port: u16, text: &[u8]) {
        let mut stream = connect(port).await;
        // The server may hang up before all is sent.
        let _ = stream.write_all(text).await;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty(), "{rest:?}");
    }

    #[tokio::test]
    async fn ranks_are_heard_and_strangers_are_not() {
        let (server, mut events) = Server::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        hung_up_on(server.port, hello(0, "").line().as_bytes()).await;
        server.expect("secret", 3, 2);
        for stranger in [
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            b"\n".to_vec(),
            b"\xff\xfe\n".to_vec(),
            vec![b'x'; 4 * LONGEST_LINE],
            hello(0, "wrong").line().into_bytes(),
            hello(2, "secret").line().into_bytes(),
            Message::Beat(Beat::default()).line().into_bytes(),
        ] {
            hung_up_on(server.port, &stranger).await;
        }
        let mut rank = connect(server.port).await;
        rank.write_all(hello(1, "secret").line().as_bytes()).await.unwrap();
        assert!(matches!(events.recv().await.unwrap(), Event { attempt: 3, rank: 1, word: Word::Hello(_) }));
        hung_up_on(server.port, hello(1, "secret").line().as_bytes()).await;
        // It is answered without having to ask, and heard in pieces.
        assert_eq!(rank.read_u8().await.unwrap(), b'\n');
        let beat = Message::Beat(Beat { step: 9, ..Beat::default() }).line();
        let (first, rest) = beat.split_at(beat.len() / 2);
        rank.write_all(first.as_bytes()).await.unwrap();
        assert_eq!(rank.read_u8().await.unwrap(), b'\n');
        rank.write_all(rest.as_bytes()).await.unwrap();
        let Word::Beat(beat) = events.recv().await.unwrap().word else { panic!("no beat") };
        assert_eq!(beat.step, 9);
        rank.write_all(b"garbage\n").await.unwrap();
        assert_eq!(events.recv().await.unwrap(), Event { attempt: 3, rank: 1, word: Word::Closed });
    }

    #[tokio::test]
    async fn ranks_of_an_ended_job_are_hung_up_on() {
        let (server, mut events) = Server::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        for attempt in [1, 2] {
            server.expect("secret", attempt, 2);
            let mut rank = connect(server.port).await;
            rank.write_all(hello(1, "secret").line().as_bytes()).await.unwrap();
            assert!(matches!(events.recv().await.unwrap().word, Word::Hello(_)));
            if attempt == 1 {
                server.dismiss()
            } else {
                server.expect("other", 3, 2)
            }
            let mut answers = Vec::new();
            rank.read_to_end(&mut answers).await.unwrap();
            assert_eq!(events.recv().await.unwrap(), Event { attempt, rank: 1, word: Word::Closed });
        }
        server.dismiss();
        hung_up_on(server.port, hello(0, "").line().as_bytes()).await;
    }

    #[tokio::test]
    async fn a_crowd_of_silent_strangers_does_not_keep_ranks_out() {
        let (server, mut events) = Server::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        server.expect("secret", 1, 2);
        let mut crowd = Vec::new();
        for _ in 0..STRANGERS / 2 {
            crowd.push(connect(server.port).await);
        }
        let mut rank = connect(server.port).await;
        rank.write_all(hello(0, "secret").line().as_bytes()).await.unwrap();
        assert_eq!(events.recv().await.unwrap().rank, 0);
    }
}
