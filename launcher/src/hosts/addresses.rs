//! Addresses of this host.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket},
};

use super::host::Host;

/// An address that is reached through the default route (TEST-NET-1 of RFC 5737).
const REMOTE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Returns true if `name`, which may begin with `user@`, is a name or an address of this host.
pub(crate) fn is_local(name: &str) -> bool {
    let name = without_user(name);
    let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let short = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    // Dots in an address do not separate a domain.
    let is_address = name.parse::<IpAddr>().is_ok();
    if name == "localhost" || name == own || (!is_address && short(name) == short(&own)) {
        return true;
    }
    resolve(name).is_some_and(|address| UdpSocket::bind((address, 0)).is_ok())
}

/// Returns the addresses under which ranks on these hosts reach the launcher: for other hosts the addresses of the
/// interfaces that face them, for this host loopback.
pub(crate) fn own_addresses(hosts: &[Host], port: u16) -> Vec<SocketAddr> {
    let mut addresses = BTreeSet::new();
    for host in hosts.iter().filter(|host| !is_local(&host.name)) {
        // Some names are known to ssh only. Assume that these hosts are reached through the default route.
        addresses.extend(source_address(resolve(&host.name).unwrap_or(REMOTE)));
    }
    let mut all: Vec<SocketAddr> = addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect();
    if all.is_empty() || hosts.iter().any(|host| is_local(&host.name)) {
        // Ranks try the addresses in order. Loopback comes last, where it also fails immediately on other hosts.
        all.push(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    }
    all
}

/// Returns the address from which this host sends packets to `remote`.
fn source_address(remote: IpAddr) -> Option<IpAddr> {
    let any: SocketAddr = if remote.is_ipv4() { "0.0.0.0:0".parse().ok()? } else { "[::]:0".parse().ok()? };
    let socket = UdpSocket::bind(any).ok()?;
    // Connecting a UDP socket sends nothing; it only makes the system choose a route.
    socket.connect((remote, 9)).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_unspecified()).then_some(address)
}

fn without_user(name: &str) -> &str {
    name.rsplit('@').next().unwrap_or(name)
}

fn resolve(name: &str) -> Option<IpAddr> {
    (without_user(name), 0).to_socket_addrs().ok()?.map(|address| address.ip()).next()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_recognized_by_its_names() {
        let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
        assert!(is_local("localhost") && is_local("127.0.0.1") && is_local(&own));
        assert!(is_local("me@localhost") && !is_local("me@192.0.2.7"));
        assert!(!is_local("192.0.2.7"));
        assert_eq!(own_addresses(&[], 4), ["127.0.0.1:4".parse().unwrap()]);
    }
}
