"""Which of several answers the platform gives, wherever what is known of it disagrees.

CONTRACT.md names the sources of each.
"""

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
    running_limit: int | None = None  # more: 429 concurrent_sprite_limit_exceeded; lists tell it
    restricted_prefix: str = ""  # the token may touch only such names: else 403
    page_size: int = 500  # at most; 50 in the older documentation
    over_page_size: str = "capped"  # or "refused" (400): max_results beyond 500
    list_items: str = "full"  # "minimal": name, org_slug and updated_at alone
    bulk_load: str = "full"  # "minimal": the same for a list with bulk_load=true
    list_org: str = "top"  # "nested" under org, or "absent"
    list_counts: str = "returned"  # of this page's sprites alone; or of the "org"
    watch_accept: str = "alone"  # "any": NDJSON beside other types starts a watch too
    heartbeat_s: float = 15.0  # between the lines of a watch in which nothing changes
    org_key: str = "organization"  # or "org_slug"
    null_url_settings: bool = False
    unknown_fields: bool = False
    members_word: str = "organization"  # or "org_users": private_access that is not "admins"
    put_settings: str = "replaced"  # or "merged": url_settings that were there, by a PUT
    unknown_status: str = ""  # a word that replaces every status
    get_says_cold: bool = False  # a GET of one sprite says cold while the list says running
    stamps: str = "Z"  # "offset" or "nanoseconds"
    status_lag_s: float = 0.0

    # waking and sleeping
    idle_from: str = "quiet"  # the last output; "detached": the last open session, quiet or not
    wake_503: int = 1  # so many sprite_starting before a sleeping sprite serves; none for a new one
    wake_form: str = "sprite_starting"  # or "proxy error" (502), or "not ready" (503 in text)

    # exec
    early_start: bool = True  # the process starts before the stream is attached
    replay_bytes: int = 16384  # of what it has printed by then
    replay_message_bytes: int = 0  # of what an attach shows again, in a message; 0: all in one
    attach_delay_s: float = 0.0
    hold_after_exit_s: float = 5.0
    exit_form: str = "byte"  # "be32" or "json"
    session_info: str = "first"  # "late" or "absent"
    sessions_shape: str = "object"  # or "array"
    session_id_type: str = "int"  # in lists; or "str"
    session_info_id_type: str = "str"  # in session_info; or "int"
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
    post_limit: int | None = 10 << 20  # bytes of a POST's body: else 413
    post_limit_when: str = "late"  # when the body was read; "early": before, and the end

    # checkpoints
    checkpoints_order: str = "newest"  # "creation" or "shuffled"
    current_row: bool = True
    include_auto_ignored: bool = False
    checkpoint_words: str = "live"  # "openapi": the words of the specification, without an ID line
    checkpoint_id_text: str = "details"  # "complete": only in the last line, or "none"
    restore_delay_s: float = 0.2  # the old environment still answers for that long

    # upgrades
    upgrade: str = "runtime"  # "storage": one that moves the disk; "none": nothing is published
