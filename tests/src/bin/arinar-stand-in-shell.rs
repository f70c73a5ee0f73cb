//! A stand-in for ssh and its server, for the test of several hosts, which are simulated by network namespaces.
//!
//!     arinar-stand-in-shell --serve ADDRESS    executes the commands that clients send
//!     arinar-stand-in-shell ADDRESS COMMAND    sends a command and exits with its exit code
//!
//! It uses TCP, so that a disconnected host is unreachable. There is no authentication.

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::Context;

/// Port of the one server on each host.
const PORT: u16 = 22;
/// Time after which a host counts as unreachable.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Exit code if the connection fails, as that of ssh.
const UNREACHABLE: u8 = 255;

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [flag, address] if flag == "--serve" => serve(socket_address(address)?),
        [address, command @ ..] if !command.is_empty() => Ok(send(address, &command.join(" "))),
        _ => anyhow::bail!("usage: arinar-stand-in-shell --serve ADDRESS | ADDRESS COMMAND..."),
    }
}

fn socket_address(address: &str) -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse::<IpAddr>().with_context(|| format!("{address} is not an IP address"))?, PORT))
}

fn serve(address: SocketAddr) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind(address)?;
    loop {
        let (client, _) = listener.accept()?;
        // Ignore errors: the client may have disconnected before the command exits.
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
    let exchange = || -> anyhow::Result<u8> {
        let mut server = TcpStream::connect_timeout(&socket_address(address)?, TIMEOUT)?;
        server.write_all(command.as_bytes())?;
        server.shutdown(Shutdown::Write)?;
        let mut code = [0];
        server.read_exact(&mut code)?;
        Ok(code[0])
    };
    ExitCode::from(exchange().unwrap_or_else(|error| {
        eprintln!("{address}: {error}");
        UNREACHABLE
    }))
}
