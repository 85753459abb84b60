//! The coordinator through its own HTTP and WebSocket, on every store alike: callers and scripted nodes in, claims about
//! what each of them sees out. Never uses another network than loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]

mod help;
mod http;
mod links;
mod tasks;
mod texts;

/// Each test on each store.
macro_rules! on_every_store {
    ($($module:ident :: $name:ident;)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$module::$name(true).await })*
        }

        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() { super::$module::$name(false).await })*
        }
    };
}

on_every_store! {
    tasks::a_task_is_offered_settled_and_answered;
    tasks::a_caller_may_wait_for_the_result;
    tasks::a_repeated_submit_is_the_same_task;
    tasks::why_a_task_waits_is_said_exactly;
    tasks::a_cancelled_task_is_stopped_at_its_node;
    tasks::a_task_ends_at_its_deadline;
    tasks::a_bad_input_is_the_callers_fault_and_is_not_tried_again;
    tasks::a_failure_is_tried_elsewhere_and_quarantined_in_the_end;
    tasks::a_declined_offer_costs_no_try;
    tasks::a_result_that_is_not_what_it_says_is_refused;
    tasks::openai_clients_are_answered_by_the_grid;
    tasks::what_a_client_chooses_reaches_the_node_and_its_refusal_comes_back;
    tasks::a_caller_who_leaves_takes_the_task_along;
    tasks::events_tell_every_state;
    texts::a_text_is_streamed_as_it_is_written;
    texts::a_text_is_answered_whole;
    texts::two_callers_are_never_mixed;
    texts::a_text_goes_on_elsewhere_wherever_its_node_is_lost;
    texts::a_text_goes_on_elsewhere_after_a_failure;
    texts::a_node_that_comes_back_in_time_goes_on_where_it_was;
    texts::frames_of_an_attempt_that_is_over_are_not_heard;
    texts::a_caller_who_leaves_stops_the_text;
    texts::a_slow_reader_gets_all_of_it_and_holds_up_nobody;
    texts::what_a_node_cannot_have_written_is_refused;
    texts::what_goes_wrong_is_told_before_or_within_the_stream;
    texts::tasks_that_write_tell_their_pieces_as_events;
    texts::a_text_begins_again_where_the_coordinator_forgot_how_far_it_was;
    links::a_node_gets_in_by_its_key_alone;
    links::work_of_a_closed_link_runs_elsewhere_and_the_late_result_is_refused;
    links::a_node_that_comes_back_keeps_what_it_runs;
    links::a_silent_node_is_noticed;
    links::a_malformed_frame_closes_its_own_link_only;
    links::a_frame_cut_off_on_its_way_ends_its_own_link_only;
    links::a_newer_connection_replaces_the_older;
    links::a_drained_node_gets_nothing_more_and_a_banned_one_is_cut_off;
    links::a_node_never_gets_more_than_it_asked_for;
    links::a_lease_that_is_not_renewed_runs_out;
    http::models_are_registered_once_and_fetched_in_ranges;
    http::a_registered_model_is_fetched_by_one_node_for_one_task;
    http::large_inputs_go_by_reference;
    http::every_rejection_is_a_problem;
    http::health_and_numbers_are_told;
}
