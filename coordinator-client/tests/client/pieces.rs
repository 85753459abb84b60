//! Pieces of texts, from the worker's host to the coordinator.

use super::{Process, Setup, accepted, ack, attempt, bye, offer, result};
use coordinator_client::client::Pieces;
use coordinator_client::fake::Link;
use coordinator_client::wire::*;

impl Process {
    /// Where the pieces of its first task go, when that runs.
    async fn pieces(&self) -> Pieces {
        loop {
            if let Some(pieces) = self.worker.pieces.lock().unwrap().clone() {
                return pieces;
            }
            tokio::task::yield_now().await;
        }
    }
}

async fn progress(link: &mut Link, epoch: u64) -> (u64, Piece) {
    match link.recv_work().await {
        Some(Frame::Progress(progress)) if progress.attempt == attempt(epoch) => {
            (progress.sequence, progress.piece.unwrap())
        }
        other => panic!("{other:?}"),
    }
}

fn piece(token: u32, text: &str) -> Piece {
    Piece { tokens: vec![token], text: text.into(), ..Piece::default() }
}

#[tokio::test]
async fn pieces_go_out_in_order_and_a_new_connection_is_told_all_of_them() {
    let mut setup = Setup::new().await;
    let process = setup.start();
    let mut link = setup.link().await;
    link.send(offer(1, "q", 1)).await;
    accepted(&mut link, 1).await;
    let pieces = process.pieces().await;
    pieces.push(piece(1, "a"));
    assert_eq!(progress(&mut link, 1).await, (0, piece(1, "a")));
    pieces.push(piece(2, "b"));
    assert_eq!(progress(&mut link, 1).await, (1, piece(2, "b")));
    link.cut();
    let mut link = setup.coordinator.accept().await;
    pieces.push(piece(3, "c"));
    link.welcome(Settings::default(), &[]).await;
    assert_eq!(progress(&mut link, 1).await, (0, Piece { tokens: vec![1, 2, 3], ..piece(0, "abc") }));
    process.worker.may_finish.add_permits(1);
    result(&mut link, 1).await;
    pieces.push(piece(4, "d"));
    link.send(ack(1)).await;
    process.handle.until(|status| status.unacknowledged == 0).await;
    process.stop().await;
    assert_eq!(
        link.recv_work().await,
        Some(bye(ByeReason::Shutdown, "the worker stops")),
        "behind a result comes nothing"
    );
}

#[tokio::test]
async fn pieces_wait_for_a_slow_link_and_are_merged() {
    const PIECES: u32 = 1_000;
    let mut setup = Setup::new().await;
    let process = setup.start();
    let mut link = setup.link().await;
    link.send(offer(1, "q", 1)).await;
    accepted(&mut link, 1).await;
    let pieces = process.pieces().await;
    let words = "x".repeat(32 << 10);
    for token in 0..PIECES {
        pieces.push(piece(token, &words));
        tokio::task::yield_now().await;
    }
    let (mut tokens, mut bytes, mut frames) = (vec![], 0, 0);
    while tokens.len() < PIECES as usize {
        let (sequence, piece) = progress(&mut link, 1).await;
        assert_eq!(sequence, frames);
        frames += 1;
        tokens.extend(piece.tokens);
        bytes += piece.text.len();
    }
    assert!(tokens.into_iter().eq(0..PIECES), "none is missing, none comes twice");
    assert_eq!(bytes, PIECES as usize * words.len());
    assert!(frames < u64::from(PIECES), "what waited was merged");
    process.kill().await;
}
