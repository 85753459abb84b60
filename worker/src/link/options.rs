//! What can be set about links, with defaults and their reasons. Plain data in, checked addresses out.

use std::path::PathBuf;

use coordinator_client::{client, identity};
use url::Url;

/// Links to coordinators.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// One entry per grid. An entry may name several addresses of the same grid, separated by commas, tried in order.
    pub coordinators: Vec<String>,
    /// A name for people; the host's name is a good one.
    pub name: String,
    /// Where the worker stands.
    pub region: String,
    /// Needed at the first registration where a grid asks for one.
    pub enrolment_token: Option<String>,
    /// Folder of the node's key, the coordinators' keys and unacknowledged results.
    pub data_folder: PathBuf,
    /// Tasks held at once for all grids together; as many as the worker has places for when absent.
    pub slots_max: Option<u32>,
}

/// Why links cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address that is none.
    #[error("{address:?} is no address of a coordinator: {reason}; write it like https://grid.example.org")]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Two workers would be one node.
    #[error("another worker is linked to its grid from {}; stop it, or give each worker a folder of its own with --data-dir", .0.display())]
    InUse(PathBuf),
    /// The lock's file.
    #[error("cannot make {}: {source}; see to the folder's owner and its free space", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The node's key.
    #[error(transparent)]
    Identity(#[from] identity::Error),
    /// The client.
    #[error(transparent)]
    Client(#[from] client::Error),
}

impl Options {
    /// The addresses of every grid.
    ///
    /// # Errors
    /// When one is none.
    pub fn grids(&self) -> Result<Vec<Vec<Url>>, Error> {
        let grid = |entry: &String| entry.split(',').map(|address| parse(address.trim())).collect();
        self.coordinators.iter().map(grid).collect()
    }
}

/// An address of HTTP, also where the link's own scheme was written.
fn parse(address: &str) -> Result<Url, Error> {
    let refuse = |reason: String| Error::Address { address: address.into(), reason };
    let http = match address.split_once("://") {
        Some(("wss", rest)) => format!("https://{rest}"),
        Some(("ws", rest)) => format!("http://{rest}"),
        Some(("http" | "https", _)) => address.to_owned(),
        Some((scheme, _)) => return Err(refuse(format!("{scheme} is not spoken"))),
        None => return Err(refuse("the scheme is missing".into())),
    };
    let url = Url::parse(&http).map_err(|error| refuse(error.to_string()))?;
    if url.query().is_some() || url.fragment().is_some() || !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("it holds more than scheme, host, port and path".into()));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(coordinators: &[&str], want: Option<&[&[&str]]>) {
        let coordinators = coordinators.iter().map(|&entry| entry.to_owned()).collect();
        let grids = Options { coordinators, ..Options::default() }.grids();
        let grids = grids
            .map(|grids| grids.iter().map(|grid| grid.iter().map(Url::to_string).collect()).collect::<Vec<Vec<_>>>());
        match want {
            Some(want) => assert_eq!(grids.unwrap(), want),
            None => assert!(matches!(grids, Err(Error::Address { .. })), "{grids:?}"),
        }
    }

    #[test]
    fn addresses_are_checked() {
        check(&[], Some(&[]));
        check(&["http://127.0.0.1:3001"], Some(&[&["http://127.0.0.1:3001/"]]));
        check(
            &["wss://a.example, https://b.example/grid", "ws://c.example"],
            Some(&[&["https://a.example/", "https://b.example/grid"], &["http://c.example/"]]),
        );
        for wrong in ["", "a.example", "127.0.0.1:3001", "ftp://a", "http://", "https://me:key@a", "http://a?b"] {
            check(&[wrong], None);
        }
    }
}
