//! The `Prefer` header (RFC 7240): how long a caller wants to wait for a result.

use http::HeaderMap;
use std::time::Duration;

/// What the caller prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// To get an answer at once.
    No,
    /// To wait for the result this long.
    Wait(Duration),
}

/// Reads `Prefer: wait=SECONDS`, up to `max`. What cannot be read is not preferred: the header is a wish.
pub(crate) fn wanted_wait(headers: &HeaderMap, max: Duration) -> Wanted {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let preferences = values.flat_map(|value| value.split(',')).map(str::trim);
    let seconds = preferences
        .filter_map(|preference| preference.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"))
        .and_then(|(_, value)| value.split(';').next()?.trim().trim_matches('"').parse().ok());
    match seconds {
        Some(seconds) if seconds > 0 => Wanted::Wait(Duration::from_secs(seconds).min(max)),
        _ => Wanted::No,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_read_wherever_it_stands_and_is_bounded() {
        let check = |value: &str, want: Wanted| {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", value.parse().unwrap());
            assert_eq!(wanted_wait(&headers, Duration::from_secs(60)), want, "{value}");
        };
        let wait = |seconds| Wanted::Wait(Duration::from_secs(seconds));
        check("wait=5", wait(5));
        check("respond-async, Wait = \"7\"", wait(7));
        check("wait=1000", wait(60));
        check("wait=0", Wanted::No);
        check("wait=soon", Wanted::No);
        check("respond-async", Wanted::No);
        assert_eq!(wanted_wait(&HeaderMap::new(), Duration::from_secs(60)), Wanted::No);
    }
}
