"""Which of several answers the platform gives, wherever what is known of it disagrees."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Personality:
    """The defaults are the answers that live observations make most likely."""

    # sprites
    duplicate_status: int = 409  # 400 in the documentation, 422 in one fake
    max_name: int = 63
    delete_status: int = 204  # or 200
    late_get: int = 0  # so many GETs after a create still answer 404
    create_limit: int | None = None  # creates until 429 sprite_creation_rate_limited
    running_limit: int | None = None  # more: 429 concurrent_sprite_limit_exceeded
    restricted_prefix: str = ""  # the token may touch only such names: else 403
    page_size: int = 50
    list_items: str = "full"  # "minimal": name, org_slug and updated_at alone
    list_org: str = "top"  # "nested" under org, or "absent"
    org_key: str = "organization"  # or "org_slug"
    null_url_settings: bool = False
    unknown_fields: bool = False
    unknown_status: str = ""  # a word that replaces every status
    stamps: str = "Z"  # "offset" or "nanoseconds"
    status_lag_s: float = 0.0

    # waking
    wake_503: int = 1  # so many sprite_starting before a sleeping sprite serves
    wake_form: str = "sprite_starting"  # or "proxy error" (502), or "not ready" (503 in text)

    # exec
    early_start: bool = True  # the process starts before the stream is attached
    replay_bytes: int = 16384  # of what it has printed by then
    attach_delay_s: float = 0.0
    hold_after_exit_s: float = 5.0
    exit_form: str = "byte"  # "be32" or "json"
    session_info: str = "first"  # "late" or "absent"
    sessions_shape: str = "object"  # or "array"
    session_id_type: str = "int"  # or "str"
    env_replaces: bool = True
    bad_dir: str = "ignored"  # or "error"
    default_home: bool = True  # whether HOME is set without env=
    stderr_on_stdout: bool = False
    kill_scope: str = "group"  # or "leader"
    killed_exit: str = "128+n"  # or "255", for a leader that a signal ended
    url_limit: int = 40_000
    url_limit_status: int = 414  # or 431
    post_chunks: str = "exact"  # "split", "merged", or "random": cut and joined by post_seed
    post_seed: int = 0

    # checkpoints
    checkpoints_order: str = "newest"  # "creation" or "shuffled"
    current_row: bool = True
    auto_checkpoints: bool = False
    include_auto_ignored: bool = False
    checkpoint_id_text: str = "details"  # "complete": only in the last line, or "none"
    restore_delay_s: float = 0.2  # the old environment still answers for that long
