"""Says which tests are quick, which files take long, and which run in one process; `docs/testing.md` has the figures."""

ON_CLUSTER = "the session's Ray cluster"

# Files that one worker process of pytest-xdist runs, one after another: what they share, as a Ray cluster, is there once.
GROUPS: dict[str, tuple[str, ...]] = {
    ON_CLUSTER: (
        "tests/jobs/running/test_run.py",
        "tests/jobs/running/test_workers_here.py",
        "tests/jobs/running/test_metrics.py",
        "tests/actors/flow/test_ray_pools.py",
    ),
    "kills": ("tests/chaos/test_kills.py", "tests/chaos/test_elastic.py", "tests/chaos/test_cascades.py"),
    "chaos": (
        "tests/chaos/test_slices.py",
        "tests/chaos/test_accepting.py",
        "tests/chaos/test_edited_rows.py",
        "tests/chaos/test_faulty_storage.py",
        "tests/chaos/test_poison.py",
        "tests/chaos/test_moved.py",
    ),
}

# In the order in which worker processes take them, so that none is left with a long file at the end.
LONGEST_FIRST: tuple[str, ...] = (
    *GROUPS["kills"],
    *GROUPS["chaos"],
    *GROUPS[ON_CLUSTER],
    "tests/clusters/test_submitting.py",
    "tests/jobs/cli/test_cli.py",
    "tests/actors/local_ray/test_ray_ends.py",
    "tests/embedded/test_training.py",
    "tests/embedded/test_quickstart.py",
    "tests/jobs/calibration/test_calibrating.py",
    "tests/jobs/api/test_rendering.py",
    "tests/shards/test_lease.py",
    "tests/shards/test_faulty_storage.py",
    "tests/shards/test_bounded_parquet.py",
    "tests/jobs/test_bounds.py",
    "tests/jobs/test_hostile_datasets.py",
    "tests/jobs/test_fuzz_readers.py",
    "tests/jobs/planning/test_shard_writing.py",
    "tests/jobs/planning/test_processes.py",
    "tests/actors/local_ray/test_import_path.py",
    "tests/actors/local_ray/test_surroundings.py",
    "tests/jobs/running/test_drafts.py",
    "tests/jobs/running/test_every_family.py",
    "tests/test_one_name.py",
)

# Folders, files and tests with Ray, runs of real models, processes or waits of more than a second. What is not said here is quick.
SLOW: tuple[str, ...] = (
    "tests/chaos",
    "tests/clusters",
    "tests/embedded/test_flow.py::test_the_stage_killed_and_resumed_ends_with_the_same_bits",
    "tests/embedded/test_flow_family.py",
    "tests/embedded/test_quickstart.py",
    "tests/embedded/test_shipped_family.py",
    "tests/embedded/test_training.py",
    "tests/embedded/test_weights.py",
    "tests/test_additions.py",
    "tests/test_one_name.py",
    # Notebooks and commands as a reader runs them.
    "tests/examples/test_balanced_classifier.py::test_the_readmes_commands_render_balanced_classes_and_train_with_them",
    "tests/examples/test_layouts_as_code.py::test_the_readmes_commands_render_layouts_and_judge_them",
    "tests/examples/test_notebook.py::test_the_notebook_comes_to_what_it_says",
    "tests/examples/test_notebook.py::test_images_and_progress_are_shown_in_jupyter",
    "tests/examples/test_two_million_images.py::test_a_run_that_is_killed_goes_on_to_the_bytes_of_one_that_was_not",
    # Processes that load models; many renderings of tiny ones.
    "tests/pipelines/rendering/test_kernels.py",
    "tests/pipelines/rendering/test_step_caching.py",
    "tests/jobs/calibration/test_step_caches.py::test_calibration_sees_the_images_of_a_run_by_the_cache_and_writes_a_config_that_plans",
    "tests/pipelines/rendering/test_previews.py",
    "tests/pipelines/rendering/test_redux.py",
    "tests/pipelines/rendering/test_merging.py",
    "tests/pipelines/rendering/test_drafts.py::test_survivors_are_byte_for_byte_what_they_are_without_drafts_in_every_mode",
    "tests/pipelines/rendering/test_drafts.py::test_the_embedded_family_scored_by_its_clip_drafts_to_the_same_survivors",
    "tests/pipelines/rendering/test_half_precision.py",
    "tests/shards/test_storage.py::test_the_region_that_a_bucket_of_aws_is_in_is_asked_of_aws",
    "tests/pipelines/rendering/test_loading.py::test_no_pipeline_marks_images_though_the_package_for_it_is_installed",
    "tests/pipelines/rendering/test_slots.py::test_in_any_mixture_each_image_is_the_one_rendered_alone",
    "tests/pipelines/scoring/test_durable_passes.py::test_however_often_runs_are_killed_between_passes_the_part_is_that_of_the_whole_and_no_pass_is_rendered_twice",
    "tests/pipelines/work/test_joined_slices.py::test_a_request_that_is_cut_makes_the_part_that_the_whole_makes",
    "tests/pipelines/work/test_lean_imports.py",
    "tests/jobs/running/test_cached_run.py",
    # On Ray.
    "tests/actors/local_ray/test_processes.py::test_a_ray_of_this_machine_has_no_dashboard_and_no_monitors",
    "tests/actors/flow/test_ray_pools.py",
    "tests/actors/local_ray/test_import_path.py",
    "tests/actors/local_ray/test_ray_ends.py",
    "tests/actors/local_ray/test_surroundings.py",
    "tests/jobs/running/test_metrics.py::test_the_metrics_port_says_what_the_records_of_a_run_say",
    "tests/jobs/running/test_run.py",
    "tests/jobs/running/test_workers_here.py",
    # Runs of the embedded family.
    "tests/jobs/annotating/test_annotating.py::test_one_that_was_killed_goes_on_to_the_same_bytes",
    "tests/jobs/annotating/test_annotating.py::test_killed_again_and_again_it_makes_nothing_twice",
    "tests/jobs/api/test_rendering.py",
    "tests/jobs/calibration/test_calibrating.py",
    "tests/jobs/cli/test_cli.py::test_a_preset_works_from_any_folder",
    "tests/jobs/cli/test_cli.py::test_a_run_on_s3_from_its_plan_to_its_sheet",
    "tests/jobs/cli/test_cli.py::test_a_run_that_may_wait_goes_on_as_soon_as_the_other_has_ended",
    "tests/jobs/cli/test_cli.py::test_a_stop_that_comes_after_the_last_unit_still_finishes",
    "tests/jobs/cli/test_cli.py::test_a_truncated_part_is_one_line_and_healed_by_the_next_run",
    "tests/jobs/cli/test_cli.py::test_a_tuned_plan_has_the_batch_that_pays_and_a_run_need_not_be_told",
    "tests/jobs/cli/test_cli.py::test_interrupted_once_it_finishes_what_is_in_flight_and_goes_on_to_the_same_bytes",
    "tests/jobs/cli/test_cli.py::test_parts_that_cannot_be_written_end_the_run_with_one_line",
    "tests/jobs/cli/test_cli.py::test_plan_measures_time_and_disk_when_asked",
    "tests/jobs/cli/test_cli.py::test_run_renders_from_nothing_says_where_to_look_and_verify_agrees",
    "tests/jobs/figures/test_ranked.py",
    "tests/jobs/planning/test_altered_plans.py::test_a_shards_plan_that_was_altered_is_not_rendered_and_with_it_brought_back_the_run_goes_on",
    "tests/jobs/planning/test_presets.py::test_no_default_is_refused_by_the_family_or_has_no_effect_on_it",
    "tests/jobs/running/test_drafts.py",
    "tests/jobs/running/test_every_family.py",
    "tests/jobs/running/test_flow_run.py",
    "tests/jobs/running/test_failure_budget.py::test_a_run_stops_once_more_has_failed_than_it_may_and_goes_on_when_it_may",
    "tests/jobs/running/test_scorers.py::test_a_run_scores_ranks_and_says_why_by_the_command_line",
    "tests/jobs/sharing/test_exporting.py::test_the_winners_are_rendered_further_in_a_second_pass_of_img2img_and_control",
    "tests/jobs/test_bad_input.py::test_every_broken_row_can_be_recorded_while_the_rest_renders",
    "tests/jobs/test_format_1.py::test_one_that_was_cut_off_is_gone_on_with_to_the_same_bytes_or_refused_in_so_many_lines",
    "tests/jobs/verifying/test_repair.py::test_damaged_shards_are_rendered_again_to_the_same_bytes_and_no_others",
    # Many files, gigabytes that are refused, faults that are waited out, processes of their own.
    "tests/configs/test_loading.py::test_a_broken_config_is_one_line_that_names_file_key_and_remedy[aliases of aliases]",
    "tests/configs/test_parquet_footers.py",
    "tests/embedded/test_oracle.py::test_it_reads_at_least_995_in_1000_drawn_pictures_right",
    "tests/jobs/clusters/test_jobs_api.py",
    "tests/jobs/planning/test_making.py::test_a_file_that_cannot_be_read_to_its_end_refuses_the_plan_though_bad_rows_are_recorded",
    "tests/jobs/planning/test_making.py::test_of_rows_with_one_id_the_first_good_one_is_a_request_and_each_row_has_one_place",
    "tests/jobs/planning/test_making.py::test_planning_takes_the_memory_of_a_shard_and_not_of_a_manifest",
    "tests/jobs/planning/test_processes.py",
    "tests/jobs/planning/test_shard_writing.py",
    "tests/jobs/planning/test_trials.py",
    "tests/jobs/sharing/test_dedup.py::test_on_s3_as_on_a_disk",
    "tests/jobs/sharing/test_exporting.py::test_images_that_have_moved_since_are_found_where_one_says_they_are",
    "tests/jobs/sharing/test_exporting.py::test_images_that_were_not_kept_are_rendered_again_to_the_pixels_that_were_scored",
    "tests/jobs/sharing/test_push.py",
    "tests/jobs/test_bad_input.py::test_a_broken_file_is_exit_2_and_one_line_before_anything_renders[gzip cut after some rows]",
    "tests/jobs/test_bounds.py",
    "tests/jobs/test_fuzz_readers.py",
    "tests/jobs/test_hostile_datasets.py",
    "tests/jobs/verifying/test_repair.py::test_killed_at_any_step_it_leaves_what_the_next_try_ends",
    "tests/manifests/test_fuzz.py::test_rows_of_every_format_are_read_as_meant_or_refused",
    "tests/manifests/test_parquet.py::test_a_bomb_takes_little_memory",
    "tests/manifests/test_parquet.py::test_a_cell_longer_than_a_row_may_be_is_a_bad_row_between_good_ones",
    "tests/manifests/test_parquet.py::test_a_file_that_claims_more_than_it_can_hold_is_one_line",
    "tests/manifests/test_tars.py::test_a_long_tar_takes_no_memory_by_the_member",
    "tests/manifests/test_urls.py",
    "tests/pipelines/models/test_hub_weights.py",
    "tests/pipelines/rendering/test_drafts.py::test_two_units_in_flight_keep_the_batch_full_through_all_passes",
    "tests/pipelines/rendering/test_drafts.py::test_survivors_are_the_same_in_a_family_without_a_unet",
    "tests/pipelines/rendering/test_equality.py",
    "tests/pipelines/rendering/test_families.py",
    "tests/pipelines/rendering/test_control_classes.py",
    "tests/pipelines/rendering/test_family_controlnets.py",
    "tests/pipelines/rendering/test_quantised.py::test_images_of_quantised_models_are_those_of_plain_diffusers_alone_and_among_others",
    "tests/pipelines/rendering/test_quantised.py::test_with_blocks_that_are_offloaded_images_are_the_same",
    "tests/pipelines/rendering/test_single_files.py",
    "tests/pipelines/rendering/test_references.py",
    "tests/pipelines/rendering/test_face_references.py",
    "tests/pipelines/rendering/test_several_pictures.py",
    "tests/pipelines/rendering/test_several_references.py",
    "tests/pipelines/rendering/test_transformer_references.py",
    "tests/pipelines/rendering/test_refiners.py",
    "tests/jobs/running/test_prior_run.py",
    "tests/jobs/running/test_mask_run.py",
    "tests/jobs/running/test_annotated_run.py",
    "tests/jobs/running/test_reference_run.py",
    "tests/jobs/running/test_refiner_run.py",
    "tests/pipelines/rendering/test_pipelines_of_modes.py::test_an_engine_imports_neither_the_code_of_every_family_nor_what_no_worker_uses",
    "tests/shards/test_bounded_parquet.py",
    "tests/shards/test_faulty_storage.py",
    "tests/shards/test_lease.py::test_a_broken_lease_file_that_is_written_again_is_somebodys",
    "tests/shards/test_lease.py::test_a_holder_in_another_process_is_refused_to_others_until_it_releases",
    "tests/shards/test_lease.py::test_a_holder_that_was_stopped_finds_its_lease_lost_and_leaves_the_new_one",
    "tests/shards/test_lease.py::test_of_eight_processes_that_take_at_once_exactly_one_wins",
    "tests/shards/test_lease.py::test_of_many_that_take_and_release_in_turn_never_two_hold",
)


def file_of(nodeid: str) -> str:
    """Return the file of a test, by the id that pytest gives the test."""
    return nodeid.partition("::")[0]


def group_of(nodeid: str) -> str:
    """Return the name that tests share which run in one worker process, one after another."""
    file = file_of(nodeid)
    return next((name for name, files in GROUPS.items() if file in files), file)


def is_quick(nodeid: str) -> bool:
    """Whether a test needs no real model, no Ray and no process of more than a second."""
    return not any(nodeid == slow or nodeid.startswith((f"{slow}::", f"{slow}[", f"{slow}/")) for slow in SLOW)
