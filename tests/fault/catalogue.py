"""Which tests hold which row of the catalogue of hostile inputs and storage faults (1 to 85, 101 to 132).

A test is named by file, function and, if need be, the end of its parameters' id; rows that several layers answer name
a test of each. Rows 86 to 100 (config) are kept by the tests of that part.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

LAYERS = "fault/test_layers.py"
CONFINED = f"{LAYERS}::test_layer_is_confined"
REFUSED = f"{LAYERS}::test_layer_is_refused"
SERVED = "fault/test_hostile_layers.py"
IMAGES = "fault/test_hostile_images.py"
IMPORT = f"{IMAGES}::test_broken_image_is_refused_and_leaves_nothing"
DAEMON = "fault/test_hostile_imports.py::test_broken_image_is_refused_at_import_and_leaves_nothing"
"""By the project's own client."""
BY_CTR = f"{IMAGES}::test_daemon_that_imports_refuses_broken_images"
DOCUMENTS = "unit/imagespec/test_documents.py"
CALLS = "fault/test_hostile_calls.py"
DISKS = "fault/test_daemon_disks.py"
STORES = "fault/test_daemon_stores.py"
DAMAGED = f"{STORES}::test_daemon_does_not_start_on_damaged_metadata_and_touches_nothing"
APPLY = "unit/diff/test_apply.py"
OVER_SHIMS = "integration/test_runtime_over_shims.py"
FAKE_SHIMS = "integration/test_fake_shims.py"
RECOVERY = "fault/test_recovery.py"
RUNTIMES = "fault/test_runtimes.py"
REGISTRIES = "fault/test_hostile_registries.py"
REDIRECTS = "fault/test_hostile_redirects.py"
PULLS = "fault/test_hostile_pulls.py"
BODIES = "fault/test_hostile_bodies.py"


def both(*rows: str, refused: bool = False) -> tuple[str, ...]:
    """A hostile layer at the differ, and through a daemon."""
    word = "refused" if refused else "confined"
    return tuple(
        f"{where}[{row}]"
        for row in rows
        for where in (f"{LAYERS}::test_layer_is_{word}", f"{SERVED}::test_layer_is_{word}_and_leaves_nothing")
    )


ROWS: Final[Mapping[int, tuple[str, ...]]] = {
    1: both("dots", "absolute"),
    2: both("through a link", "through a relative link"),
    3: (
        *both("through a link of a lower layer"),
        f"{SERVED}::test_01_to_05_upper_layers_do_not_leave_through_links_of_lower_ones",
    ),
    4: both("folder over link"),
    5: both("parent swapped", "parent of a parent swapped", "folder times after a swap"),
    6: both("hard link to the host", "hard link through a link", refused=True),
    7: both("hard link to nothing", "hard link to a folder", "hard link to itself", refused=True),
    8: both("loop as a parent", refused=True),
    9: both("whiteout of nothing", "whiteout of the folder", "whiteout of its parent", refused=True),
    10: both("whiteout through a link"),
    11: (
        f"{APPLY}::test_whiteout_in_a_plain_folder_removes_what_the_layer_brought_too",
        f"{APPLY}::test_whiteout_of_what_the_overlay_layer_brought_is_refused",
    ),
    12: both("fake whiteout"),
    13: (f"{APPLY}::test_kinds_of_files", *both("fifo over link")),
    14: (f"{APPLY}::test_kinds_of_files", "unit/diff/test_peer.py"),
    15: (f"{APPLY}::test_extended_attributes", "conformance/test_diff.py"),
    16: (f"{SERVED}::test_16_trusted_attributes_of_a_layer_are_not_set", f"{APPLY}::test_extended_attributes"),
    17: both("large attribute", refused=True),
    18: (*both("long name", "deep path", refused=True), f"{LAYERS}::test_deep_trees_are_removed_with_few_descriptors"),
    19: both("duplicates"),
    20: both("file as a parent", refused=True),
    21: (
        f"{SERVED}::test_21_extended_headers_have_a_cap",
        *both("extended header over its cap", refused=True),
    ),
    22: both("size -1", "NUL in a name", refused=True),
    23: (
        f"{SERVED}::test_23_sparse_file_is_charged_with_its_whole_size",
        f"{LAYERS}::test_sparse_file_takes_no_room",
        f"{LAYERS}::test_bombs_stop_at_the_budget",
    ),
    24: both("owner 2**32", "owner 2**32 - 1", "owner 2**40 + 7", "owner -1", refused=True),
    25: (*both("times and numbers at the edge"), *both("unknown type", refused=True)),
    26: both("no bytes"),
    27: (
        *both("cut in a file", "cut in a header", refused=True),
        f"{LAYERS}::test_layer_cut_at_a_block_is_an_error_unless_an_entry_ends_there",
    ),
    28: (*both("random bytes", refused=True), f"{LAYERS}::test_compressed_layers_that_are_broken"),
    29: (f"{APPLY}::test_junk_behind_the_archive_belongs_to_the_diff_id",),
    30: (
        f"{LAYERS}::test_compressed_layers_that_are_broken",
        f"{LAYERS}::test_compressed_layers_that_are_good",
        "unit/diff/test_decompress.py::test_what_follows_is_refused",
    ),
    31: (f"{SERVED}::test_31_compressed_bomb_stops_at_the_budget", f"{LAYERS}::test_bombs_stop_at_the_budget"),
    32: ("unit/diff/test_decompress.py::test_zstd_that_asks_for_too_much_is_refused",),
    33: (f"{LAYERS}::test_compressed_layers_that_are_good", f"{LAYERS}::test_compressed_layers_that_are_broken"),
    34: (f"{SERVED}::test_34_unknown_media_type_is_refused", f"{DAEMON}[34 layer of an unknown type]"),
    35: (f"{LAYERS}::test_sixty_thousand_entries_take_bounded_time",),
    36: tuple(f"{where}[36 {row} diff id]" for where in (IMPORT, DAEMON) for row in ("wrong", "malformed")),
    37: (
        f"{IMPORT}[37 more diff ids than layers]",
        f"{DAEMON}[37 more diff ids than layers]",
        f"{DOCUMENTS}::test_a_config_with_other_diff_ids_than_layers_is_refused",
    ),
    38: (
        f"{SERVED}::test_38_blob_of_another_size_than_described_is_refused",
        *(f"{DAEMON}[38 layer {row}]" for row in ("that is shorter", "that is longer", "of 10**12 bytes")),
    ),
    39: (f"{IMAGES}::test_39_absent_layer_is_not_found", f"{DAEMON}[39 absent layer]"),
    40: (
        f"{IMAGES}::test_40_unpacked_layer_of_another_namespace_is_not_given_away",
        "unit/content/test_namespaced.py::test_isolated_namespace_has_to_send_the_bytes",
    ),
    41: (
        f"{IMAGES}::test_41_malformed_digests_are_refused_before_anything_is_looked_up",
        f"{DAEMON}[41 layer digest with dots]",
        f"{DAEMON}[41 layer digest of md5]",
    ),
    42: (
        *(
            f"{DAEMON}[42 {row}]"
            for row in ("absent config", "config that is a layer", "no layers", "schema version 99")
        ),
        f"{DOCUMENTS}::test_a_malformed_manifest_is_refused_with_the_fault",
    ),
    43: (
        f"{DAEMON}[43 inline data of another digest]",
        f"{DAEMON}[43 inline data that is no base64]",
        "fault/test_hostile_imports.py::test_43_inline_data_of_its_digest_is_taken",
        f"{DOCUMENTS}::test_other_bytes_than_the_digest_says_are_refused_inline_too",
    ),
    44: (f"{IMPORT}[44 large manifest.json]", f"{DAEMON}[44 large manifest.json]"),
    45: (
        f"{DAEMON}[45 index.json of 9 MiB]",
        f"{DAEMON}[45 index.json of 300 MiB]",
        f"{DOCUMENTS}::test_a_document_of_too_many_bytes_is_refused_unread",
    ),
    46: (
        f"{DAEMON}[46 deep json]",
        f"{DAEMON}[46 deep json in a field]",
        f"{DOCUMENTS}::test_documents_nested_a_million_deep_are_refused",
    ),
    47: (
        f"{DAEMON}[47 chain of indexes]",
        f"{DAEMON}[47 chain of 17 indexes]",
        f"{DOCUMENTS}::test_a_chain_of_indexes_deeper_than_the_limit_is_refused",
    ),
    48: (
        f"{DAEMON}[48 24 levels that double]",
        "fault/test_hostile_imports.py::test_48_indexes_that_double_within_the_depth_are_read_once_each",
        f"{IMAGES}::test_48_indexes_that_double_at_each_level_are_read_once",
        f"{DOCUMENTS}::test_an_index_that_doubles_at_each_level_is_read_once_a_level",
    ),
    49: (f"{DOCUMENTS}::test_a_walk_gives_parents_before_children_and_each_digest_once",),
    50: (
        f"{DAEMON}[50 5000 equal layers]",
        f"{DOCUMENTS}::test_a_malformed_manifest_is_refused_with_the_fault",
    ),
    51: (f"{IMAGES}::test_51_two_hundred_layers_can_be_mounted",),
    52: (f"{DAEMON}[52 50000 layers of a docker archive]", f"{BY_CTR}[52 50000 layers of a docker archive]"),
    53: tuple(
        f"{where}[53 docker archive with {row}]"
        for where in (IMPORT, DAEMON)
        for row in ("links", "a loop of links", "a config outside")
    ),
    54: (f"{IMPORT}[54 tag that is a path]", f"{DAEMON}[54 tag that is a path]"),
    55: (
        f"{IMAGES}::test_55_name_of_an_annotation_is_never_a_path",
        f"{CALLS}::test_60_image_names_are_any_text_up_to_a_length",
    ),
    56: tuple(
        f"{where}[56 {row}]"
        for where in (IMPORT, DAEMON)
        for row in ("empty archive", "zeros", "garbage", "layout of version 9")
    ),
    57: (f"{CALLS}::test_57_call_without_a_namespace_is_refused",),
    58: (f"{CALLS}::test_58_namespace_that_is_no_identifier_is_refused",),
    # No client library sends such a header.
    59: ("unit/test_namespaces.py::test_these_are_no_identifiers",),
    60: (f"{CALLS}::test_60_image_names_are_any_text_up_to_a_length", "conformance/test_objects.py"),
    # An empty key has the code of containerd, which is Unknown.
    61: (f"{CALLS}::test_61_snapshot_keys_are_any_text_and_no_paths", "e2e/test_garbage.py::test_wire_texts"),
    62: (f"{CALLS}::test_62_lease_with_an_odd_id_or_expiry_keeps_what_it_holds",),
    63: (f"{CALLS}::test_63_lease_that_is_not_there_is_not_found",),
    64: (f"{CALLS}::test_64_labels_are_checked_before_anything_is_done",),
    65: (f"{CALLS}::test_65_filter_that_does_not_parse_is_refused",),
    66: (f"{CALLS}::test_66_expression_that_does_not_compile_matches_nothing",),
    67: (
        f"{CALLS}::test_67_expression_takes_linear_time",
        "unit/test_filters.py::test_an_expression_cannot_take_exponential_time",
    ),
    68: (f"{CALLS}::test_68_many_and_long_filters_are_bounded", "unit/test_filters.py::test_over_a_limit_is_an_error"),
    69: (
        f"{CALLS}::test_69_message_of_20_mib_is_refused",
        "integration/test_grpc_server.py::test_message_of_almost_16_mib_passes_by_default",
    ),
    70: (f"{CALLS}::test_70_write_without_a_ref_is_refused",),
    71: (f"{CALLS}::test_71_commit_of_other_bytes_is_refused_and_keeps_the_ingest",),
    72: (f"{CALLS}::test_72_malformed_expected_digest_is_refused_at_once",),
    73: (f"{CALLS}::test_73_write_at_another_offset_is_out_of_range",),
    74: (f"{CALLS}::test_74_offset_0_begins_a_resumed_ref_anew",),
    75: (f"{CALLS}::test_75_negative_total_is_refused",),
    76: (f"{CALLS}::test_76_second_writer_of_a_ref_is_told_that_it_is_locked",),
    77: (f"{CALLS}::test_77_ingest_that_is_aborted_under_its_writer_ends_cleanly",),
    78: (f"{CALLS}::test_78_cancelled_write_is_resumed",),
    79: (
        f"{CALLS}::test_79_a_thousand_half_open_streams_starve_nobody",
        "integration/test_content_service.py::test_many_open_streams_hold_up_nobody",
    ),
    80: (f"{CALLS}::test_80_reads_beyond_the_end_are_refused_and_negative_numbers_mean_all",),
    81: (f"{CALLS}::test_81_subscriber_that_does_not_read_is_cut_off_alone",),
    82: (f"{CALLS}::test_82_what_is_not_empty_or_has_children_stays",),
    83: (f"{CALLS}::test_83_runtime_name_that_is_a_path_is_never_run",),
    84: (f"{CALLS}::test_84_blob_whose_file_is_gone_can_be_written_again",),
    85: (
        f"{CALLS}::test_85_blob_with_other_bytes_is_found_before_it_is_unpacked",
        f"{LAYERS}::test_blob_with_other_bytes_than_its_digest_is_found",
        "unit/content/test_layout.py::test_changed_byte_is_found_by_verify",
    ),
    101: (
        f"{OVER_SHIMS}::test_killed_shim_ends_its_task_with_events",
        f"{RECOVERY}::test_wait_on_a_shim_that_dies_fails_as_containerds_does_and_its_task_goes",
        f"{RUNTIMES}::test_shim_killed_in_the_middle_of_a_call_leaves_no_call_behind",
    ),
    102: (
        f"{OVER_SHIMS}::test_stopped_shim_is_unknown_and_kept",
        f"{FAKE_SHIMS}::test_silent_shim_is_named_and_kept",
    ),
    103: (
        f"{RECOVERY}::test_hung_shim_is_unknown_over_restarts_and_serves_again_once_it_goes_on",
        f"{FAKE_SHIMS}::test_many_silent_shims_do_not_hold_up_the_start",
    ),
    104: (
        f"{FAKE_SHIMS}::test_shim_that_speaks_garbage_fails_the_create",
        "integration/test_ttrpc_bounds.py",
        "property/test_ttrpc_frames.py",
    ),
    105: (
        f"{FAKE_SHIMS}::test_bad_start_fails_the_create_and_leaves_nothing",
        f"{FAKE_SHIMS}::test_start_that_hangs_is_ended",
    ),
    106: (
        "fault/test_shims.py::test_manager_killed_at_any_step_leaves_nothing",
        "fault/test_shims.py::test_start_that_outlives_the_manager_is_ended_by_the_next_one",
        f"{RECOVERY}::test_daemon_killed_at_any_moment_of_much_work_leaves_nothing_half_done",
    ),
    107: (
        f"{REGISTRIES}::test_107_a_body_that_breaks_off_is_gone_on_with",
        f"{REGISTRIES}::test_107_a_body_that_is_always_too_short_is_given_up",
        f"{REGISTRIES}::test_107_a_byte_a_connection_is_no_progress",
        f"{REGISTRIES}::test_107_another_host_goes_on_where_one_breaks_off",
        f"{PULLS}::test_107_a_pull_goes_on_where_an_earlier_one_broke_off",
    ),
    108: (
        f"{REGISTRIES}::test_108_a_body_that_says_to_be_too_long_is_not_read",
        f"{REGISTRIES}::test_108_a_body_without_a_length_is_read_to_one_byte_more",
    ),
    109: (f"{PULLS}::test_109_wrong_bytes_are_not_in_the_way_of_the_next_pull",),
    110: (f"{PULLS}::test_109_wrong_bytes_are_not_in_the_way_of_the_next_pull[other-FAILED_PRECONDITION]",),
    111: (
        f"{REGISTRIES}::test_111_another_digest_than_the_wanted_one_is_refused",
        f"{REGISTRIES}::test_111_a_digest_that_is_none_is_not_taken",
        f"{REGISTRIES}::test_111_a_web_page_is_no_manifest",
    ),
    112: (
        f"{REGISTRIES}::test_112_a_manifest_that_says_to_be_huge_is_refused_unread",
        f"{REGISTRIES}::test_112_a_manifest_that_turns_out_huge_is_given_up",
        f"{REGISTRIES}::test_112_a_document_whose_descriptor_says_that_it_is_huge_is_not_asked_for",
    ),
    113: (
        f"{REGISTRIES}::test_113_how_often_is_asked",
        f"{REGISTRIES}::test_113_different_troubles_are_asked_again_five_times_in_all",
        f"{REGISTRIES}::test_113_a_server_in_trouble_is_asked_again_only_if_it_is_the_last",
        f"{REGISTRIES}::test_113_what_a_server_wants_to_be_waited_for_is_waited_for",
        f"{REGISTRIES}::test_113_a_server_that_wants_too_much_time_is_not_asked_again",
        f"{REGISTRIES}::test_113_a_server_that_refuses_every_token_is_given_up",
        f"{REGISTRIES}::test_113_a_password_that_is_refused_is_not_sent_again",
    ),
    114: (
        f"{REDIRECTS}::test_114_a_registry_may_name_any_token_server",
        f"{REDIRECTS}::test_114_a_policy_keeps_secrets_from_internal_token_servers",
        f"{REDIRECTS}::test_114_a_policy_may_allow_the_token_server",
        f"{REDIRECTS}::test_114_the_registry_itself_may_always_give_tokens",
        f"{REDIRECTS}::test_114_a_token_of_megabytes_is_given_up",
        f"{REDIRECTS}::test_114_a_token_server_that_redirects_is_not_followed",
    ),
    115: (
        f"{REDIRECTS}::test_115_redirects_in_a_circle_end_after_ten",
        f"{REDIRECTS}::test_115_a_redirect_to_what_is_no_http_address_is_refused",
        f"{REDIRECTS}::test_115_a_redirect_without_a_place_is_an_answer",
    ),
    116: (
        f"{REDIRECTS}::test_116_another_port_gets_no_secret_and_no_header",
        f"{REDIRECTS}::test_116_another_scheme_gets_no_secret",
        f"{REDIRECTS}::test_116_the_way_back_from_another_host_has_no_secret",
        f"{REDIRECTS}::test_116_who_was_redirected_to_cannot_ask_for_secrets",
        f"{REDIRECTS}::test_116_a_policy_keeps_from_private_addresses_however_they_are_spelt",
        f"{REDIRECTS}::test_116_a_policy_leaves_the_registry_itself_alone",
        f"{REDIRECTS}::test_116_an_address_in_a_descriptor_gets_no_secret_and_cannot_ask_for_one",
        f"{REDIRECTS}::test_116_an_address_in_a_descriptor_is_bound_by_the_policy",
        f"{REDIRECTS}::test_116_thousands_of_addresses_in_a_descriptor_are_not_all_asked",
        f"{PULLS}::test_116_the_config_keeps_from_private_addresses_and_token_servers",
    ),
    117: (
        f"{BODIES}::test_117_an_encoding_is_undone",
        f"{BODIES}::test_117_a_bomb_is_put_out_at_the_size_that_is_expected",
        f"{BODIES}::test_117_an_encoding_that_is_none_is_refused",
    ),
    118: (
        f"{PULLS}::test_118_the_config_says_what_is_waited_for",
        f"{BODIES}::test_118_a_body_that_drips_is_given_up",
        f"{BODIES}::test_118_a_body_that_stops_is_given_up",
        f"{BODIES}::test_118_an_answer_that_never_begins_is_given_up",
        f"{BODIES}::test_118_a_head_that_drips_is_given_up",
        f"{BODIES}::test_118_a_reader_that_takes_its_time_is_not_held_against_the_server",
        f"{BODIES}::test_118_an_error_that_drips_is_told_without_its_text",
        f"{BODIES}::test_118_a_token_that_drips_is_given_up",
        f"{BODIES}::test_118_an_upload_that_nobody_reads_is_given_up",
        f"{BODIES}::test_118_an_upload_that_takes_long_and_moves_is_not_given_up",
    ),
    119: (
        f"{DISKS}::test_full_disk_serves_reads_and_deletes_and_goes_on_once_there_is_room",
        "fault/test_content.py::test_full_disk_keeps_the_ingest_and_lets_itself_be_freed",
    ),
    120: (
        f"{DISKS}::test_full_disk_serves_reads_and_deletes_and_goes_on_once_there_is_room",
        "fault/test_metadata.py::test_full_disk_leaves_deletes_working",
    ),
    121: (
        f"{DISKS}::test_daemon_starts_on_a_full_disk_and_frees_it",
        f"{DISKS}::test_daemon_does_not_start_on_a_read_only_disk_and_says_so",
        "fault/test_snapshots.py::test_snapshotter_starts_on_a_full_disk_and_lets_snapshots_go",
    ),
    122: (
        f"{DISKS}::test_failing_call_of_an_import_fails_it_alone[fsync]",
        "fault/test_content.py::test_failed_sync_of_a_commit_is_data_loss_and_begins_again",
        f"{DISKS}::test_metadata_that_cannot_be_synced_ends_the_daemon_and_loses_nothing",
    ),
    123: (
        f"{DISKS}::test_failing_call_of_an_import_fails_it_alone[rename]",
        "fault/test_content.py::test_failed_rename_keeps_the_ingest",
    ),
    124: (
        f"{DISKS}::test_killed_at_a_call_of_an_import_the_retry_works[fsync]",
        f"{DISKS}::test_killed_at_a_call_of_an_import_the_retry_works[fdatasync]",
        "fault/test_content.py::test_killed_at_any_call_of_an_ingest_it_is_whole_or_absent",
    ),
    125: (
        "fault/test_kill_daemon.py::test_killed_daemon_keeps_its_word_and_leaves_nothing",
        "fault/test_kill_daemon.py::test_killed_daemon_leaves_no_mounts",
        "fault/test_power_cut.py::test_power_cuts_lose_nothing_that_was_acknowledged",
    ),
    126: (f"{STORES}::test_126_damaged_ingest_harms_no_other",),
    127: tuple(f"{DAMAGED}[127 {row}]" for row in ("empty", "no file", "no folder", "new", "cut")),
    128: (f"{DAMAGED}[128 garbage]",),
    129: (
        f"{STORES}::test_129_last_transaction_whose_meta_page_is_lost_has_not_been",
        f"{DAMAGED}[129 first page]",
    ),
    130: (f"{DAMAGED}[130 inner pages]",),
    131: ("e2e/test_process.py::test_second_daemon_on_the_same_root_ends_at_once_naming_the_first",),
    132: (
        "unit/gc/test_scheduler.py::test_clock_set_forward_is_noticed_within_a_minute",
        "unit/gc/test_scheduler.py::test_clock_set_back_does_not_hide_what_expires",
    ),
}
