//! Races connection attempts to the addresses of a name (RFC 8305).

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::sleep;

/// Time that an attempt has before the next one starts beside it (RFC 8305, section 8).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Maximum number of addresses that are tried: a DNS answer may have hundreds.
const MAX_ADDRESSES: usize = 16;

/// Alternates the address families, IPv6 first, and removes repetitions. The order within a family
/// stays, because the resolver has sorted it.
pub(crate) fn interleaved(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut unique = Vec::new();
    for address in addresses {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    let (six, four): (Vec<_>, Vec<_>) = unique.into_iter().partition(SocketAddr::is_ipv6);
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    let mut mixed = Vec::new();
    loop {
        let next = [six.next(), four.next()];
        if mixed.len() >= MAX_ADDRESSES || next.iter().all(Option::is_none) {
            return mixed;
        }
        mixed.extend(next.into_iter().flatten());
    }
}

/// Starts an attempt for each address, the next one after a delay or as soon as one fails. Returns
/// the first success and drops the other attempts.
///
/// # Errors
/// The errors of all attempts, in the order in which they failed; empty if there is no address.
pub(crate) async fn race<T, E, F>(
    addresses: Vec<SocketAddr>,
    attempt: impl Fn(SocketAddr) -> F,
) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut waiting = addresses.into_iter();
    let mut running = FuturesUnordered::new();
    let mut errors = Vec::new();
    loop {
        if let Some(address) = waiting.next() {
            running.push(attempt(address));
        } else if running.is_empty() {
            return Err(errors);
        }
        let more = waiting.len() > 0;
        tokio::select! {
            Some(ended) = running.next() => match ended {
                Ok(connected) => return Ok(connected),
                Err(error) => errors.push(error),
            },
            () = sleep(ATTEMPT_DELAY), if more => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::Instant;

    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 7443))
    }

    #[test]
    fn race__families_alternate_without_repetition() {
        let six = |last: u16| SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, last], 7443));
        let resolved = [address(1), address(2), six(1), address(1), address(3), six(2)];
        let expected = [six(1), address(1), six(2), address(2), address(3)];
        assert_eq!(interleaved(resolved), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn race__silent_address_delays_the_next_by_250_ms() {
        let began = Instant::now();
        let connected = race(vec![address(1), address(2)], async |to| {
            if to == address(1) { pending().await } else { Ok::<_, ()>(to) }
        });
        assert_eq!(connected.await, Ok(address(2)));
        assert_eq!(began.elapsed(), ATTEMPT_DELAY);
    }

    #[tokio::test(start_paused = true)]
    async fn race__failure_starts_the_next_at_once() {
        let began = Instant::now();
        let all: Vec<_> = (1..5).map(address).collect();
        let connected =
            race(all.clone(), async |to| if to == address(4) { Ok(()) } else { Err(to) });
        assert_eq!(connected.await, Ok(()));
        let failed = race(all.clone(), async |to| Err::<(), _>(to)).await;
        assert_eq!(failed, Err(all));
        assert_eq!(began.elapsed(), Duration::ZERO);
        let none = race(Vec::new(), async |to: SocketAddr| Err::<(), _>(to)).await;
        assert_eq!(none, Err(Vec::new()));
    }
}
