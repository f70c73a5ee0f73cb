//! A stand-in for ssh and its server, for the test of several machines, which are network namespaces there.
//!
//!     arinar-stand-in-shell --serve ADDRESS    runs what clients send
//!     arinar-stand-in-shell ADDRESS COMMAND    sends a command, and ends with its exit code
//!
//! It goes over TCP, so that a machine which is cut off cannot be reached. Whoever is reached is trusted.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::Context;

/// Each machine has one server.
const PORT: u16 = 22;
/// A machine that does not answer for so long is not there.
const TIMEOUT: Duration = Duration::from_secs(5);
/// As ssh ends where it cannot connect.
const UNREACHABLE: u8 = 255;

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [flag, address] if flag == "--serve" => serve(place(address)?),
        [address, command @ ..] if !command.is_empty() => Ok(send(address, &command.join(" "))),
        _ => anyhow::bail!("usage: arinar-stand-in-shell --serve ADDRESS | ADDRESS COMMAND..."),
    }
}

fn place(address: &str) -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse::<IpAddr>().with_context(|| format!("{address} is no address"))?, PORT))
}

fn serve(place: SocketAddr) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind(place)?;
    loop {
        let (client, _) = listener.accept()?;
        // The client may have gone when the command ends.
        std::thread::spawn(move || run(client).ok());
    }
}

fn run(mut client: TcpStream) -> anyhow::Result<()> {
    let mut command = String::new();
    client.read_to_string(&mut command)?;
    let status = Command::new("sh").arg("-c").arg(command).stdin(Stdio::null()).status()?;
    client.write_all(&[status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(UNREACHABLE)])?;
    Ok(())
}

fn send(address: &str, command: &str) -> ExitCode {
    let answer = || -> anyhow::Result<u8> {
        let mut server = TcpStream::connect_timeout(&place(address)?, TIMEOUT)?;
        server.write_all(command.as_bytes())?;
        server.shutdown(Shutdown::Write)?;
        let mut code = [0];
        server.read_exact(&mut code)?;
        Ok(code[0])
    };
    ExitCode::from(answer().unwrap_or_else(|error| {
        eprintln!("{address}: {error}");
        UNREACHABLE
    }))
}
