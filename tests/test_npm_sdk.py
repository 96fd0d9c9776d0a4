"""The emulator, proved by the platform's official JavaScript SDK (`@fly/sprites` on npm).

NPM_SDK names a folder into which it was installed, with a Node of its own if the system's is too
old: `npm install @fly/sprites@0.1.0 node@24`. As in test_sdk.py nothing of ours is in between,
and the emulator is as it is by default.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from emulation import Emulator

FOLDER = Path(os.environ.get("NPM_SDK") or "/nonexistent")
PACKAGE = FOLDER / "node_modules" / "@fly" / "sprites"
NODE = shutil.which("node", path=str(FOLDER / "node_modules" / ".bin")) or shutil.which("node")


def has_websockets() -> bool:
    probe = [str(NODE), "-e", "process.exit(typeof WebSocket === 'function' ? 0 : 1)"]
    return subprocess.run(probe, stdin=subprocess.DEVNULL).returncode == 0


pytestmark = [
    pytest.mark.skipif(not PACKAGE.is_dir(), reason="NPM_SDK names no folder with @fly/sprites"),
    pytest.mark.skipif(
        not (PACKAGE.is_dir() and NODE and has_websockets()), reason="no Node with WebSockets"
    ),
]

BEGIN = """
import { once } from 'node:events';
import { connect } from 'node:net';
import { SpritesClient } from PACKAGE;
const client = new SpritesClient(process.env.TOKEN, { baseURL: process.env.URL });
const tell = value => console.log(JSON.stringify(value));
const failure = async promise => {
  try { await promise; } catch (error) { return error; }
  throw new Error('that should have failed');
};
"""


Play = Callable[..., list[Any]]


@pytest.fixture
def platform() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator
        assert emulator.journal.oddities == []


@pytest.fixture
def play(platform: Emulator, tmp_path: Path) -> Play:
    """Return a function that runs a script of the SDK, and returns what it tells."""

    def play(script: str, **variables: str) -> list[Any]:
        path = tmp_path / "script.mjs"
        entry = json.dumps((PACKAGE / "dist" / "index.js").as_uri())
        path.write_text(BEGIN.replace("PACKAGE", entry) + script + "\nprocess.exit(0);\n")
        done = subprocess.run(
            [str(NODE), str(path)],
            env={"TOKEN": platform.token, "URL": platform.url, **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return play


def test_a_sprite_is_created_and_destroyed(play: Play, platform: Emulator) -> None:
    told = play("""
    const made = await client.createSprite('dev', { labels: ['ci'], runtime: 'dev' });
    const found = await client.getSprite('dev');
    tell([made.name, made.id === found.id, found.status, found.labels, found.organizationName]);
    const { url, urlSettings } = found;
    tell([url, urlSettings.auth]);
    const taken = await failure(client.createSprite('dev'));
    tell([taken.statusCode, taken.errorCode]);
    await found.destroy();
    tell((await failure(client.getSprite('dev'))).statusCode);
    """)
    assert told[0] == ["dev", True, "cold", ["ci"], "acme"]
    assert told[1][0].endswith(".sprites.app")
    assert (told[1][1], told[2], told[3]) == ("sprite", [409, "conflict"], 404)
    assert not platform.sprites


def test_a_wrong_token_is_refused(play: Play) -> None:
    told = play("tell((await failure(client.listSprites())).statusCode);", TOKEN="wrong")
    assert told == [401]


def test_lists_of_one_page_and_of_three(play: Play, platform: Emulator) -> None:
    names = [f"many-{number:03}" for number in range(123)]
    for name in [*names, "other"]:
        platform.add_sprite(name)
    whole, page, bulk = play("""
    tell((await client.listAllSprites('many-')).map(sprite => sprite.name));
    const page = await client.listSprites({ maxResults: 500 });
    tell([page.sprites.length, page.hasMore, page.cold, page.runningLimit, page.organizationName]);
    tell((await client.listSprites({ bulkLoad: true, prefix: 'other' })).sprites[0].name);
    """)
    assert whole == names
    assert page == [124, False, 124, 10, "acme"]
    assert bulk == "other"
    assert len(platform.journal) == 5


def test_changes_are_watched(play: Play) -> None:
    told = play("""
    const stream = await client.watchSprites({ prefix: 'dev' });
    const sprite = await client.createSprite('dev');
    const first = await stream.next();
    await sprite.execFile('true');
    const second = await stream.next();
    for (const event of [first, second])
      tell([event.name, event.status, event.organization.running, event.organization.name]);
    stream.close();
    """)
    assert told == [["dev", "cold", 0, "acme"], ["dev", "running", 1, "acme"]]


@pytest.mark.parametrize("status", [1, 42, 255])
def test_a_new_sprite_runs_commands_at_once(play: Play, status: int) -> None:
    script = """
    const sprite = await client.createSprite('dev');
    const script = 'echo out; echo err >&2; exit $STATUS';
    const { result } = await failure(sprite.execFile('sh', ['-c', script]));
    tell([result.exitCode, result.stdout, result.stderr]);
    tell((await sprite.exec('echo one two')).stdout);
    """
    assert play(script.replace("$STATUS", str(status))) == [
        [status, "out\n", "err\n"],
        "one two\n",
    ]


def test_the_environment_and_the_directory_arrive(play: Play) -> None:
    told = play("""
    const sprite = await client.createSprite('dev');
    const options = { env: { A: 'a b' }, cwd: '/usr' };
    const done = await sprite.execFile('/bin/sh', ['-c', 'echo "$A"; pwd'], options);
    tell(done.stdout);
    """)
    assert told == ["a b\n/usr\n"]


def test_input_goes_in_and_comes_back(play: Play) -> None:
    told = play("""
    const sprite = await client.createSprite('dev');
    const command = sprite.spawn('cat');
    const parts = [];
    command.stdout.on('data', data => parts.push(data));
    await once(command, 'spawn');
    const data = Buffer.alloc(300000, 'x');
    command.stdin.write(data);
    command.stdin.end();
    const status = await command.wait();
    tell([status, Buffer.concat(parts).equals(data)]);
    """)
    assert told == [[0, True]]


def test_a_command_by_post(play: Play, platform: Emulator) -> None:
    told = play("""
    const sprite = await client.createSprite('dev');
    // the SDK takes two frames that Node reads at once for one, so they come apart here
    const slowly = ['-c', 'wc -c; sleep 0.3'];
    tell((await sprite.execFileHTTP('sh', slowly, { input: Buffer.alloc(10 << 20) })).stdout);
    const { result } = await failure(sprite.execFileHTTP('sh', ['-c', 'exit 3']));
    tell(result.exitCode);
    const much = { input: Buffer.alloc((10 << 20) + 1) };
    const error = await failure(sprite.execFileHTTP('wc', ['-c'], much));
    tell([error.statusCode, error.errorCode]);
    """)
    assert told == ["10485760\n", 3, [413, "Stdin exceeds 10 MiB"]]
    assert [kind for _, _, kind in platform.journal.executed] == ["post", "post"]


def test_a_terminal_is_left_and_found_again(play: Play, platform: Emulator) -> None:
    told = play("""
    const sprite = await client.createSprite('dev');
    const script = 'stty size; read x; echo got $x; read x';
    const first = sprite.spawn('sh', ['-c', script], { tty: true, rows: 33, cols: 101 });
    let text = '';
    // one listener for all: a stream drops what comes while nobody listens any more
    const read = command => command.stdout.on('data', data => { text += data; });
    const see = async words => {
      while (!text.includes(words)) await new Promise(done => setTimeout(done, 10));
    };
    read(first);
    const [info] = await once(first, 'message');
    await see('33 101');
    const [session] = await sprite.listSessions();
    tell([typeof info.session_id, String(session.id) === info.session_id, session.tty]);
    const second = sprite.attachSession(info.session_id);
    text = '';
    first.stdout.removeAllListeners('data');
    read(second);
    await once(second, 'spawn');
    second.stdin.write('words\\r');
    await see('got words');
    const events = [];
    for await (const event of await sprite.killSession(info.session_id, 'SIGKILL', '5s'))
      events.push(event.type);
    tell(events);
    """)
    assert told == [["string", True, True], ["signal", "exited", "complete"]]


def test_a_checkpoint_is_taken_listed_and_restored(play: Play, platform: Emulator) -> None:
    told = play("""
    const sprite = await client.createSprite('dev');
    const all = async stream => {
      const found = [];
      for await (const event of stream) found.push(event);
      return found;
    };
    await sprite.execFile('sh', ['-c', 'echo precious > notes']);
    const taken = await all(await sprite.createCheckpoint('known good'));
    tell([taken.at(-1).type, taken.some(event => event.data === '  ID: v1')]);
    const listed = (await sprite.listCheckpoints()).filter(item => item.id === 'v1');
    tell([listed[0].comment, (await sprite.getCheckpoint('v1')).id]);
    await sprite.execFile('rm', ['notes']);
    tell((await all(await sprite.restoreCheckpoint('v1'))).at(-1).type);
    while ((await client.getSprite('dev')).status !== 'cold')
      await new Promise(done => setTimeout(done, 20));
    for (;;) {
      try { await sprite.listSessions(); break; }
      catch (error) { if (!error.message.includes('sprite_starting')) throw error; }
    }
    tell((await sprite.execFile('cat', ['notes'])).stdout);
    """)
    assert told == [["complete", True], ["known good", "v1"], "complete", "precious\n"]


def test_a_sprite_is_changed_looked_at_restarted_and_upgraded(
    play: Play, platform: Emulator
) -> None:
    told = play("""
    const sprite = await client.createSprite('dev');
    await sprite.updateURLSettings({ auth: 'public' });
    tell((await client.getSprite('dev')).urlSettings);
    const settings = { auth: 'sprite', privateAccess: 'org_users' };
    const changed = await sprite.update({ urlSettings: settings, labels: ['a'] });
    tell([changed.urlSettings, changed.labels]);
    tell((await sprite.check()).status);
    await sprite.execFile('true');
    const checked = await sprite.check();
    tell([checked.status, checked.spriteId === sprite.id, checked.checkedAt.getFullYear() > 2000]);
    tell((await sprite.restart()).spriteName);
    await sprite.upgrade();
    """)
    assert told == [
        {"auth": "public"},
        [{"auth": "sprite", "privateAccess": "organization"}, ["a"]],
        "hibernated",
        ["healthy", True, True],
        "dev",
    ]
    assert platform.journal[-1].status == 200


def test_a_port_is_forwarded(play: Play) -> None:
    told = play(
        """
    const sprite = await client.createSprite('dev');
    const script = 'import socket; s = socket.create_server(("127.0.0.1", 0)); '
      + 'print(s.getsockname()[1], flush=True); c = s.accept()[0]; '
      + 'c.sendall(b"got " + c.recv(100)); c.close()';
    const command = sprite.spawn('python3', ['-c', script]);
    const port = Number(String((await once(command.stdout, 'data'))[0]));
    const proxy = await sprite.proxyPort(Number(process.env.PORT), port, '127.0.0.1');
    const local = connect(Number(process.env.PORT), 'localhost');
    await once(local, 'connect');
    local.write('words');
    tell(String((await once(local, 'data'))[0]));
    proxy.close();
    """,
        PORT=str(free_port()),
    )
    assert told == ["got words"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
