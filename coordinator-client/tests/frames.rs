//! Frames: what is encoded comes back; damaged bytes are an error, never a panic; unknown tags are no frames.

use coordinator_client::api::Code;
use coordinator_client::wire::node::SessionToken;
use coordinator_client::wire::task::*;
use coordinator_client::wire::text::*;
use coordinator_client::wire::*;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use std::collections::BTreeSet;

fn attempt() -> impl Strategy<Value = Attempt> {
    (any::<u128>(), any::<u64>()).prop_map(|(id, epoch)| Attempt { task: TaskId(uuid::Uuid::from_u128(id)), epoch })
}

fn attempts() -> impl Strategy<Value = Vec<Attempt>> {
    vec(attempt(), 0..4)
}

fn finite() -> impl Strategy<Value = f32> {
    any::<f32>().prop_filter("NaN does not equal itself", |v| !v.is_nan())
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,12}"
}

fn kind() -> impl Strategy<Value = TaskKind> {
    proptest::sample::select(TaskKind::ALL)
}

fn tensor() -> impl Strategy<Value = Tensor> {
    (text(), "[A-Z0-9]{1,6}", vec(any::<u64>(), 0..4), vec(any::<u8>(), 0..64))
        .prop_map(|(name, datatype, shape, data)| Tensor { name, datatype, shape, data: data.into() })
}

fn words() -> impl Strategy<Value = Text> {
    prop_oneof![text().prop_map(Text::Words), vec(any::<u32>(), 0..9).prop_map(Text::Ids)]
}

fn input() -> impl Strategy<Value = TaskInput> {
    let top_n = || option::of(any::<u32>());
    prop_oneof![
        (
            vec(words(), 0..4),
            option::of(text()),
            option::of(text()),
            option::of(any::<u32>()),
            option::of(any::<bool>()),
            any::<bool>(),
        )
            .prop_map(|(inputs, input_type, prompt_name, dimensions, normalize, truncate)| {
                TaskInput::Embed(EmbedInput { inputs, input_type, prompt_name, dimensions, normalize, truncate })
            }),
        (text(), vec(text(), 0..4), top_n(), any::<bool>()).prop_map(|(query, documents, top_n, truncate)| {
            TaskInput::Rerank(RerankInput { query, documents, top_n, truncate })
        }),
        (vec(words(), 0..4), vec(tensor(), 0..3), top_n(), any::<bool>()).prop_map(
            |(inputs, tensors, top_n, truncate)| TaskInput::Classify(ClassifyInput {
                inputs,
                tensors,
                top_n,
                truncate
            })
        ),
        (vec(tensor(), 0..3), vec(text(), 0..3))
            .prop_map(|(inputs, outputs)| TaskInput::Infer(InferInput { inputs, outputs })),
        (words(), write_options()).prop_map(|(prompt, options)| TaskInput::Generate(GenerateInput { prompt, options })),
        (json(), option::of(json()), option::of(tool_choice()), write_options()).prop_map(
            |(messages, tools, tool_choice, options)| TaskInput::Chat(ChatInput {
                messages,
                tools,
                tool_choice,
                options
            })
        ),
    ]
}

/// JSON whose keys are in no order, with a number that no float holds.
fn json() -> impl Strategy<Value = JsonText> {
    (text(), any::<u128>()).prop_map(|(words, number)| {
        let words = serde_json::to_string(&words).expect("a text is JSON");
        JsonText::new(format!(r#"[{{"z": {words}, "a": {number}}}]"#)).expect("it is JSON")
    })
}

fn tool_choice() -> impl Strategy<Value = ToolChoice> {
    let others = vec![ToolChoice::None, ToolChoice::Auto, ToolChoice::Required];
    prop_oneof![proptest::sample::select(others), text().prop_map(ToolChoice::Function)]
}

fn write_options() -> impl Strategy<Value = WriteOptions> {
    let number = || option::of(finite());
    let format = prop_oneof![
        Just(Format::JsonObject),
        json().prop_map(Format::JsonSchema),
        text().prop_map(Format::Regex),
        text().prop_map(Format::Grammar),
    ];
    let choice = (number(), option::of(any::<u32>()), number(), number(), number());
    let penalties = (number(), number(), number(), btree_map(any::<u32>(), finite(), 0..3));
    let ends = (option::of(any::<u32>()), vec(text(), 0..3), any::<bool>(), option::of(format));
    let rest = (option::of(any::<u32>()), option::of(any::<u64>()), vec(any::<u32>(), 0..5));
    (choice, penalties, ends, rest).prop_map(|(choice, penalties, ends, rest)| {
        let (temperature, top_k, top_p, min_p, typical_p) = choice;
        let (repetition_penalty, presence_penalty, frequency_penalty, logit_bias) = penalties;
        let (max_tokens, stop, ignore_eos, format) = ends;
        let (logprobs, seed, generated) = rest;
        WriteOptions {
            max_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            typical_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            logprobs,
            seed,
            stop,
            ignore_eos,
            format,
            generated,
        }
    })
}

fn logprobs() -> impl Strategy<Value = Vec<TokenLogprob>> {
    let one = |top: Vec<TokenLogprob>| {
        (any::<u32>(), text(), finite()).prop_map(move |(token, text, logprob)| TokenLogprob {
            token,
            text,
            logprob,
            top: top.clone(),
        })
    };
    let with_top = vec(one(vec![]), 0..3).prop_flat_map(one);
    vec(with_top, 0..3)
}

fn tool_calls() -> impl Strategy<Value = Vec<ToolCall>> {
    vec((text(), text()).prop_map(|(name, arguments)| ToolCall { name, arguments }), 0..3)
}

fn piece() -> impl Strategy<Value = Piece> {
    (vec(any::<u32>(), 0..5), text(), tool_calls(), logprobs()).prop_map(|(tokens, text, tool_calls, logprobs)| Piece {
        tokens,
        text,
        tool_calls,
        logprobs,
    })
}

fn written() -> impl Strategy<Value = Written> {
    let finish = proptest::sample::select(vec![Finish::Stop, Finish::Length, Finish::ToolCalls]);
    (piece(), finish).prop_map(|(Piece { tokens, text, tool_calls, logprobs }, finish)| Written {
        text,
        tokens,
        tool_calls,
        logprobs,
        finish,
    })
}

fn output() -> impl Strategy<Value = TaskOutput> {
    let score = (any::<u32>(), finite()).prop_map(|(index, score)| Score { index, score });
    let label = (text(), finite()).prop_map(|(label, score)| Label { label, score });
    let matrix = (1usize..5, vec(finite(), 0..6)).prop_map(|(columns, values)| {
        let rows = values.len() / columns;
        let columns = if rows == 0 { 0 } else { columns };
        Matrix { columns, values: values[..rows * columns].to_vec() }
    });
    prop_oneof![
        matrix.prop_map(|embeddings| TaskOutput::Embed { embeddings }),
        vec(score, 0..5).prop_map(|results| TaskOutput::Rerank { results }),
        vec(vec(label, 0..3), 0..3).prop_map(|results| TaskOutput::Classify { results }),
        vec(tensor(), 0..3).prop_map(|outputs| TaskOutput::Infer { outputs }),
        written().prop_map(TaskOutput::Generate),
        written().prop_map(TaskOutput::Chat),
    ]
}

fn payload<T: std::fmt::Debug>(value: impl Strategy<Value = T>) -> impl Strategy<Value = Payload<T>> {
    let blob = ("[0-9a-f]{64}", any::<u64>()).prop_map(|(sha256, bytes)| Payload::Blob(BlobRef { sha256, bytes }));
    prop_oneof![3 => value.prop_map(Payload::Inline), 1 => blob]
}

fn models() -> impl Strategy<Value = Vec<ModelHeld>> {
    let model = (text(), kind(), any::<bool>(), option::of(text()))
        .prop_map(|(id, task, loaded, execution_class)| ModelHeld { id, task, loaded, execution_class });
    vec(model, 0..3)
}

fn hello() -> impl Strategy<Value = Frame> {
    let capabilities = (vec(kind(), 0..4), models(), any::<bool>(), any::<u64>(), any::<u32>()).prop_map(
        |(kinds, models, can_fetch, memory_bytes_free, slots)| Capabilities {
            kinds,
            models,
            can_fetch,
            memory_bytes_free,
            slots,
        },
    );
    let who = (vec(any::<u16>(), 0..3), "[a-z2-7]{52}", any::<u64>(), text(), text(), text());
    (who, capabilities, vec(text(), 0..3), attempts()).prop_map(
        |((protocols, node, session_epoch, name, region, agent), capabilities, cards, running)| {
            Frame::Hello(Box::new(Hello {
                protocols,
                node: NodeId(node),
                session_epoch,
                name,
                region,
                agent,
                capabilities,
                profile: serde_json::json!({"cards": cards, "cores": 2, "load": 0.5, "gpu": null}),
                running,
            }))
        },
    )
}

fn settings() -> impl Strategy<Value = Settings> {
    let token = (text(), any::<u64>(), any::<u64>()).prop_map(|(token, expires_at_ms, expires_in_ms)| SessionToken {
        token,
        expires_at_ms,
        expires_in_ms,
    });
    (any::<u64>(), any::<u64>(), any::<u64>(), option::of(token))
        .prop_map(|(heartbeat_ms, lease_ms, resend_ms, token)| Settings { heartbeat_ms, lease_ms, resend_ms, token })
}

fn heartbeat() -> impl Strategy<Value = Frame> {
    let load = (any::<u32>(), any::<u32>(), any::<u32>(), any::<bool>(), finite());
    let health = (any::<u64>(), option::of(finite()), any::<u8>(), option::of(models()), any::<u64>());
    (load, health, attempts()).prop_map(
        |(
            (slots, slots_free, queue, draining, utilisation),
            (memory_bytes_free, temperature_c, health_score, models, time_ms),
            running,
        )| {
            Frame::Heartbeat(Heartbeat {
                slots,
                slots_free,
                running,
                queue,
                draining,
                utilisation,
                memory_bytes_free,
                temperature_c,
                health_score,
                models,
                time_ms,
            })
        },
    )
}

fn offer() -> impl Strategy<Value = Frame> {
    (attempt(), text(), payload(input()), option::of(any::<u64>()), any::<i32>(), option::of(text())).prop_map(
        |(attempt, model, input, deadline_in_ms, priority, trace_parent)| {
            Frame::Offer(Box::new(Offer { attempt, model, input, deadline_in_ms, priority, trace_parent }))
        },
    )
}

fn result() -> impl Strategy<Value = Frame> {
    let what = (attempt(), payload(output()), any::<u64>(), any::<[u64; 5]>());
    let proof = (text(), text(), text(), any::<u32>(), "[0-9a-f]{64}", "[0-9a-f]{64}", vec(any::<u8>(), 64));
    (what, proof).prop_map(
        |((attempt, output, input_tokens, t), (model, model_digest, execution_class, batch_size, i, o, signature))| {
            let [queue_us, prepare_us, device_us, finish_us, total_us] = t;
            Frame::Result(Box::new(TaskResult {
                attempt,
                output,
                usage: Usage { input_tokens, cached_tokens: input_tokens / 2, output_tokens: !input_tokens },
                timings: Timings { queue_us, prepare_us, device_us, finish_us, total_us },
                model,
                model_digest,
                execution_class,
                batch_size,
                input_sha256: i,
                output_sha256: o,
                signature,
            }))
        },
    )
}

fn failed() -> impl Strategy<Value = Frame> {
    use FailureClass::*;
    let class = proptest::sample::select(vec![Input, Resource, Model, Hardware, Cancelled, Internal]);
    (attempt(), class, any::<bool>(), proptest::sample::select(Code::ALL), text()).prop_map(
        |(attempt, class, retryable, code, detail)| Frame::Failed(Failed { attempt, class, retryable, code, detail }),
    )
}

fn decline() -> impl Strategy<Value = Frame> {
    use DeclineReason::*;
    let reason = proptest::sample::select(vec![NoSlot, NoMemory, ModelMissing, Draining, Stale, Unsupported]);
    (attempt(), reason, text())
        .prop_map(|(attempt, reason, detail)| Frame::Decline(Decline { attempt, reason, detail }))
}

fn bye() -> impl Strategy<Value = Frame> {
    use ByeReason::*;
    let reasons = vec![Shutdown, Malformed, Protocol, Silent, Replaced, Unauthorized, Banned, Other];
    (proptest::sample::select(reasons), text()).prop_map(|(reason, detail)| Frame::Bye(Bye { reason, detail }))
}

fn frame() -> impl Strategy<Value = Frame> {
    use AckOutcome::*;
    let outcome = proptest::sample::select(vec![Settled, StaleAttempt, Duplicate]);
    let nonce = || any::<u64>().prop_map(|nonce| Ping { nonce });
    let model = || text().prop_map(|model| ModelRef { model });
    prop_oneof![
        hello(),
        (any::<u16>(), settings(), any::<u64>(), attempts(), attempts()).prop_map(
            |(protocol, settings, server_time_ms, adopted, refused)| {
                Frame::Welcome(Welcome { protocol, settings, server_time_ms, adopted, refused })
            }
        ),
        heartbeat(),
        offer(),
        attempt().prop_map(|attempt| Frame::Accept(Accept { attempt })),
        decline(),
        (attempt(), any::<u64>(), option::of(finite()), option::of(piece())).prop_map(
            |(attempt, sequence, fraction, piece)| Frame::Progress(Progress { attempt, sequence, fraction, piece })
        ),
        result(),
        failed(),
        (attempt(), outcome).prop_map(|(attempt, outcome)| Frame::Ack(Ack { attempt, outcome })),
        (attempt(), text()).prop_map(|(attempt, reason)| Frame::Cancel(Cancel { attempt, reason })),
        text().prop_map(|reason| Frame::Drain(Drain { reason })),
        model().prop_map(Frame::LoadModel),
        model().prop_map(Frame::UnloadModel),
        settings().prop_map(Frame::Settings),
        nonce().prop_map(Frame::Ping),
        nonce().prop_map(Frame::Pong),
        bye(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_comes_back(frame in frame()) {
        prop_assert_eq!(Frame::decode(&frame.encode().unwrap()), Ok(Some(frame)));
    }

    #[test]
    fn damaged_bytes_are_never_a_panic(
        frame in frame(),
        hits in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = frame.encode().unwrap();
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        // Some damage gives another frame; what counts is that whatever is read can be written and read again.
        if let Ok(Some(other)) = Frame::decode(&bytes) {
            prop_assert!(other.encode().is_ok());
        }
    }

    #[test]
    fn a_frame_that_is_cut_short_or_followed_by_more_is_an_error(
        frame in frame(),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = frame.encode().unwrap();
        prop_assert!(Frame::decode(&bytes[..cut.index(bytes.len())]).is_err());
        bytes.push(0xc0);
        prop_assert_eq!(Frame::decode(&bytes), Err(DecodeError::Trailing(1)));
    }

    #[test]
    fn noise_is_never_a_panic(bytes in vec(any::<u8>(), 0..256)) {
        let _ = Frame::decode(&bytes);
    }
}

#[test]
fn every_kind_of_frame_is_tried() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let frame = frame();
    let mut seen = BTreeSet::new();
    for _ in 0..2_000 {
        seen.insert(frame.new_tree(&mut runner).unwrap().current().tag());
    }
    assert_eq!(seen, Frame::TAGS.iter().copied().collect());
}

/// MessagePack written by hand: `0x81` is a map of one pair, `0xa1` a text of one byte.
fn check(bytes: &[u8], is_ignored: bool) {
    match Frame::decode(bytes) {
        Ok(None) => assert!(is_ignored, "{bytes:x?} was ignored"),
        Ok(Some(frame)) => panic!("{bytes:x?} is {frame:?}"),
        Err(_) => assert!(!is_ignored, "{bytes:x?} was refused"),
    }
}

#[test]
fn unknown_tags_are_ignored_and_everything_else_is_refused() {
    check(b"\x82\xa1t\xa3new\xa1d\x80", true);
    check(b"\x81\xa1t\xa3new", true);
    check(b"\x82\xa1d\x80\xa1t\xa4ping", false); // the tag comes first
    check(b"\x81\xa1t\xa4ping", false);
    check(b"\x82\xa1t\xa4ping\xa1d\x80", false);
    check(b"\x92\xa1t\xa3new", false);
    check(b"\xa3new", false);
    check(b"", false);
    check(b"\xdf\xff\xff\xff\xff\xa1t\xa5hello", false); // four billion pairs
    check(b"\x82\xa1t\xa6result\xa1d\xc6\xff\xff\xff\xff", false); // four gigabytes
    let deep = [b"\x82\xa1t\xa5hello\xa1d\x81\xa7profile".as_slice(), &[0x91; 100_000]].concat();
    check(&deep, false);
}

#[test]
fn messages_above_the_limit_are_neither_read_nor_written() {
    assert_eq!(
        Frame::decode(&vec![0; MESSAGE_BYTES_MAX + 1]),
        Err(DecodeError::TooLarge { bytes: MESSAGE_BYTES_MAX + 1 })
    );
    let big = Frame::Drain(Drain { reason: "x".repeat(MESSAGE_BYTES_MAX) });
    assert_eq!(big.encode().unwrap_err().tag, "drain");
}

#[test]
fn words_of_a_later_protocol_do_not_close_the_link() {
    #[derive(serde::Serialize)]
    struct Later<'a> {
        attempt: Attempt,
        class: &'a str,
        code: &'a str,
        retryable: bool,
        detail: &'a str,
        later_field: [u8; 1],
    }
    let attempt = Attempt { task: TaskId(uuid::Uuid::nil()), epoch: 1 };
    let failed = |class, code| {
        let content = Later { attempt, class, code, retryable: true, detail: "", later_field: [1] };
        let content = rmp_serde::to_vec_named(&content).unwrap();
        let tag_first = [b"\x82\xa1t\xa6failed\xa1d".as_slice(), &content].concat();
        match Frame::decode(&tag_first) {
            Ok(Some(Frame::Failed(failed))) => (failed.class, failed.code),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(failed("model", "too_long"), (FailureClass::Model, Code::TooLong));
    assert_eq!(failed("weather", "rain"), (FailureClass::Internal, Code::Internal));
}

#[test]
fn a_payload_goes_inline_or_as_a_blob_under_the_same_digest() {
    let output = TaskOutput::Rerank { results: vec![Score { index: 0, score: 0.5 }; 9] };
    let inline = Payload::pack(output.clone());
    assert_eq!(inline.payload, Payload::Inline(output.clone()));
    let blob = Payload::pack_above(output.clone(), 10);
    let bytes = blob.blob.unwrap();
    assert_eq!(blob.sha256, inline.sha256);
    assert_eq!(
        blob.payload,
        Payload::<TaskOutput>::Blob(BlobRef { sha256: digest::sha256_hex(&bytes), bytes: bytes.len() as u64 })
    );
    assert_eq!(rmp_serde::from_slice::<TaskOutput>(&bytes).unwrap(), output);
}
