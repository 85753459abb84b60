//! What nodes and those who depend on them see.

use crate::help::{Node, Says, World, open};
use coordinator_client::identity::Identity;
use coordinator_client::wire::*;
use reqwest::{Method, StatusCode};
use serde_json::json;
use std::time::Duration;
use tokio_tungstenite::tungstenite::Message;

pub(crate) async fn a_node_gets_in_by_its_key_alone(in_memory: bool) {
    let world = World::new(in_memory).await;
    let [one, other] = [1, 2].map(|secret| Identity::from_secret(&[secret; 32]));
    let token = world.login(&one).await.unwrap();
    assert_eq!(open(&world, &one, "x.y.z", Some(SUBPROTOCOL)).await.unwrap_err(), 401);
    assert_eq!(open(&world, &other, &token, Some(SUBPROTOCOL)).await.unwrap_err(), 403, "another node's link");
    assert_eq!(open(&world, &one, &token, Some("other.v9")).await.unwrap_err(), 400);
    assert!(open(&world, &one, &token, Some(SUBPROTOCOL)).await.is_ok());
    let relayed = json!({"public_key": one.public_key_hex(), "origin": "https://evil.example", "name": "n"});
    let (status, body) = world.ask(Method::POST, "/api/nodes/register", Some(relayed)).await;
    assert_eq!((status, &body["code"]), (StatusCode::FORBIDDEN, &"forbidden".into()));
    world.pass(600_000);
    assert_eq!(open(&world, &one, &token, Some(SUBPROTOCOL)).await.unwrap_err(), 401, "the token is over");
}

pub(crate) async fn work_of_a_closed_link_runs_elsewhere_and_the_late_result_is_refused(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut first = Node::connect(&world, Says::has(1, &["m@1"])).await;
    let id = world.submit("m", "a").await;
    let offer = first.offer().await;
    let mut second = Node::connect(&world, Says::has(2, &["m@1"])).await;
    let late = first.result_of(&offer, 0.1);
    drop(first);
    assert_eq!(second.work().await.outcome, AckOutcome::Settled);
    let mut first = Node::connect(&world, Says { running: vec![offer.attempt], ..Says::has(1, &["m@1"]) }).await;
    assert_eq!((first.welcome.adopted.len(), &first.welcome.refused[..]), (0, &[offer.attempt][..]));
    first.send(Frame::Result(Box::new(late))).await;
    assert_eq!(first.ack().await.outcome, AckOutcome::StaleAttempt);
    let result = world.get(&format!("/api/tasks/{id}/result")).await;
    assert_eq!(result["output"]["embeddings"], json!([[0.5]]), "the first settled result stands");
    let attempts = world.get(&format!("/api/tasks/{id}/attempts")).await;
    assert_eq!((&attempts[0]["outcome"], &attempts[1]["outcome"]), (&"lost".into(), &"settled".into()));
}

pub(crate) async fn a_node_that_comes_back_keeps_what_it_runs(in_memory: bool) {
    let mut world = World::with(in_memory, |options| options.nodes.grace = Duration::from_secs(20)).await;
    let mut node = Node::connect(&world, Says::has(1, &["m@1"])).await;
    let id = world.submit("m", "a").await;
    let offer = node.offer().await;
    drop(node);
    let says = Says { running: vec![offer.attempt], ..Says::has(1, &["m@1"]) };
    let mut node = Node::connect(&world, says.clone()).await;
    assert_eq!(node.welcome.adopted, [offer.attempt]);
    if !in_memory {
        // What is on disk outlives the coordinator too.
        world.restart().await;
        node = Node::connect(&world, says).await;
        assert_eq!(node.welcome.adopted, [offer.attempt]);
    }
    let result = node.result_of(&offer, 0.5);
    node.send(Frame::Result(Box::new(result.clone()))).await;
    assert_eq!(node.ack().await.outcome, AckOutcome::Settled);
    node.send(Frame::Result(Box::new(result))).await;
    assert_eq!(node.ack().await.outcome, AckOutcome::Duplicate);
    assert_eq!(world.get(&format!("/api/tasks/{id}")).await["attempts"], 1);
    world.stop().await;
    assert!(matches!(node.bye().await, ByeReason::Shutdown));
}

pub(crate) async fn a_silent_node_is_noticed(in_memory: bool) {
    let world = World::with(in_memory, |options| options.nodes.ping = Duration::from_millis(50)).await;
    let mut silent = Node::connect(&world, Says::has(1, &["m@1"])).await;
    let id = world.submit("m", "a").await;
    silent.offer().await;
    // Nobody reads the silent node's socket from here on, so its pings get no pong of the transport either.
    let _waits = world.until(&id, "/waits/code", "no_node").await;
    assert!(matches!(silent.next().await, Some(Frame::Bye(Bye { reason: ByeReason::Silent, .. })) | None));
}

pub(crate) async fn a_malformed_frame_closes_its_own_link_only(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut good = Node::connect(&world, Says::has(9, &["m@1"])).await;
    let cut = [Message::Binary(vec![0xc1, 0xff].into()), Message::Text("{}".into()), {
        let whole = Frame::Heartbeat(Heartbeat::default()).encode().unwrap();
        Message::Binary(whole[..whole.len() / 2].to_vec().into())
    }];
    for (message, secret) in cut.into_iter().zip(1..) {
        let mut bad = Node::connect(&world, Says::has(secret, &["other@1"])).await;
        bad.send_raw(message).await;
        assert_eq!(bad.bye().await, ByeReason::Malformed);
    }
    let mut confused = Node::connect(&world, Says::has(7, &["other@1"])).await;
    confused.send(Frame::Drain(Drain::default())).await;
    assert_eq!(confused.bye().await, ByeReason::Protocol);
    let mut newer = Node::connect(&world, Says::has(8, &["other@1"])).await;
    newer.send_raw(Message::Binary(b"\x82\xa1t\xa6future\xa1d\xc0".to_vec().into())).await;
    world.submit("m", "a").await;
    assert_eq!(good.work().await.outcome, AckOutcome::Settled);
    newer.send(Frame::Ping(Ping { nonce: 7 })).await;
    assert!(matches!(newer.next().await, Some(Frame::Pong(Ping { nonce: 7 }))), "an unknown tag is ignored");
}

pub(crate) async fn a_frame_cut_off_on_its_way_ends_its_own_link_only(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut good = Node::connect(&world, Says::has(9, &["m@1"])).await;
    // A binary frame that says it has 4,096 bytes, its mask, and three of them; then a header that is cut itself.
    for (bytes, secret) in [(&[0x82, 0xfe, 0x10, 0x00, 1, 2, 3, 4, 5, 6, 7][..], 1), (&[0x82, 0xfe, 0x10], 2)] {
        let bad = Node::connect(&world, Says::has(secret, &["other@1"])).await;
        let id = bad.identity.node().clone();
        bad.break_off(bytes).await;
        let gone = async {
            while world.get(&format!("/api/nodes/{id}")).await["link"].is_object() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the link is closed");
    }
    world.submit("m", "a").await;
    assert_eq!(good.work().await.outcome, AckOutcome::Settled);
}

pub(crate) async fn a_newer_connection_replaces_the_older(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut older = Node::connect(&world, Says::has(1, &["m@1"])).await;
    world.submit("m", "a").await;
    let offer = older.offer().await;
    let mut newer = Node::connect(&world, Says { running: vec![offer.attempt], ..Says::has(1, &["m@1"]) }).await;
    assert_eq!(older.bye().await, ByeReason::Replaced);
    assert_eq!(newer.welcome.adopted, [offer.attempt]);
    tokio::time::sleep(Duration::from_millis(150)).await; // the older link's grace passes and takes nothing
    let result = newer.result_of(&offer, 0.5);
    newer.send(Frame::Result(Box::new(result))).await;
    assert_eq!(newer.ack().await.outcome, AckOutcome::Settled);
    assert_eq!(world.get("/api/health").await["nodes"], 1);
}

pub(crate) async fn a_drained_node_gets_nothing_more_and_a_banned_one_is_cut_off(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut node = Node::connect(&world, Says::has(1, &["m@1"])).await;
    let id = node.identity.node().clone();
    let act = async |verb: &str| world.ask(Method::POST, &format!("/api/nodes/{id}/{verb}"), None).await.1;
    assert_eq!(act("drain").await["state"], "draining");
    assert!(matches!(node.next().await, Some(Frame::Drain(_))));
    let task = world.submit("m", "a").await;
    world.until(&task, "/waits/code", "nodes_draining").await;
    assert_eq!(act("activate").await["state"], "active");
    assert_eq!(node.work().await.outcome, AckOutcome::Settled);
    assert_eq!(act("ban").await["state"], "banned");
    assert_eq!(node.bye().await, ByeReason::Banned);
    let refused = world.login(&Identity::from_secret(&[1; 32])).await.unwrap_err();
    assert_eq!(refused["code"], "forbidden");
}

pub(crate) async fn a_node_never_gets_more_than_it_asked_for(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut node = Node::connect(&world, Says { slots: 2, ..Says::has(1, &["m@1"]) }).await;
    for text in ["a", "b", "c"] {
        world.submit("m", text).await;
    }
    let (first, second) = (node.offer().await, node.offer().await);
    // Answered after anything that was offered before it.
    node.send(Frame::Ping(Ping { nonce: 1 })).await;
    assert!(matches!(node.next().await, Some(Frame::Pong(_))));
    let result = node.result_of(&first, 0.5);
    node.send(Frame::Result(Box::new(result))).await;
    let (mut acks, mut offers) = (0, 0);
    for _ in 0..2 {
        match node.next().await {
            Some(Frame::Ack(_)) => acks += 1,
            Some(Frame::Offer(offer)) => {
                assert_ne!(offer.attempt.task, second.attempt.task);
                offers += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((acks, offers), (1, 1), "the report made room for the third");
}

pub(crate) async fn a_lease_that_is_not_renewed_runs_out(in_memory: bool) {
    let world = World::new(in_memory).await;
    let mut node = Node::connect(&world, Says::has(1, &["m@1"])).await;
    let renewed = world.submit("m", "a").await;
    let offer = node.offer().await;
    let forgotten = world.submit("m", "b").await;
    node.offer().await;
    world.pass(20_000);
    node.send(Frame::Heartbeat(Heartbeat { slots: 2, running: vec![offer.attempt], ..Heartbeat::default() })).await;
    node.send(Frame::Ping(Ping { nonce: 1 })).await;
    assert!(matches!(node.next().await, Some(Frame::Pong(_))));
    // The renewal is settled beside the link's frames; a later question to the store comes after it.
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.pass(20_000);
    assert!(matches!(node.next().await, Some(Frame::Cancel(_))), "the node is told to stop what is no longer its");
    let attempts = world.get(&format!("/api/tasks/{forgotten}/attempts")).await;
    assert_eq!(attempts[0]["outcome"], "lost");
    assert_eq!(world.get(&format!("/api/tasks/{renewed}")).await["attempts"], 1);
}
