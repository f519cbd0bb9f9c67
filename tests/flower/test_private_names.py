"""The contract with Flower's insides: the few private names that we touch still mean what we take them for."""

from __future__ import annotations

import ast
import inspect
import json
import re
from importlib.metadata import version
from pathlib import Path

import pytest
from flwr.app import Error, Message, RecordDict
from flwr.serverapp.strategy import Strategy

import fedpeft
from fedpeft.core.wire import LOST_CODES
from fedpeft.engines import flower_private, flower_private_device, flower_private_node, flower_private_server
from fedpeft.engines.flower_private import Run, set_identity, set_message_id
from fedpeft.server.grid import ERROR_DROPPED

PACKAGE = Path(fedpeft.__file__).parent
PUBLIC = {"app", "serverapp", "clientapp", "simulation"}
"""Parts of Flower that its documentation promises."""


def imports(path: Path) -> set[str]:
    """Return the names of modules that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def test_the_pinned_flower_is_installed() -> None:
    assert version("flwr").startswith("1.41.")


def test_private_imports_stay_in_four_modules() -> None:
    ours = (flower_private, flower_private_device, flower_private_node, flower_private_server)
    found = {
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in PACKAGE.rglob("*.py")
        if path not in {Path(str(one.__file__)) for one in ours}
        for name in imports(path)
        if name.startswith("flwr.") and name.split(".")[1] not in PUBLIC
    }
    assert found == set()


def test_a_message_speaks_for_the_identity_that_was_set() -> None:
    for run_id, node_id in ((7, 1), (2**61, 3)):
        set_identity(run_id=run_id, node_id=node_id)
        message = Message(RecordDict(), dst_node_id=9, message_type="train")
        assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.dst_node_id) == (
            run_id,
            node_id,
            9,
        )


@pytest.mark.parametrize("content", [RecordDict(), Error(2, "no")])
def test_a_reply_refers_to_the_id_that_was_set(content: RecordDict | Error) -> None:
    set_identity(run_id=7, node_id=1)
    message = Message(RecordDict(), dst_node_id=9, message_type="train")
    assert message.metadata.message_id == ""
    set_message_id(message, "m-1")
    reply = Message(content, reply_to=message)
    assert message.metadata.message_id == "m-1"
    assert reply.metadata.reply_to_message_id == "m-1"
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id, reply.metadata.run_id) == (9, 1, 7)
    assert reply.metadata.message_type == "train"


def test_an_empty_run_has_the_id_it_was_given() -> None:
    assert Run.create_empty(2**61 + 5).run_id == 2**61 + 5


def test_error_codes_are_flowers() -> None:
    from flwr.common.constant import ErrorCode

    assert ErrorCode.CLIENT_APP_RAISED_EXCEPTION == 2
    known = {value for name, value in vars(ErrorCode).items() if name.isupper()}
    assert known >= LOST_CODES | {ERROR_DROPPED}


def test_every_strategy_is_flowers() -> None:
    from fedpeft.strategies.base import FedPeft

    assert issubclass(FedPeft, Strategy)
    assert FedPeft.__abstractmethods__ == frozenset()
    abstract = {name for name, value in vars(Strategy).items() if getattr(value, "__isabstractmethod__", False)}
    assert abstract <= set(vars(FedPeft)), "Flower's contract grew"


def parameters(function: object) -> set[str]:
    return set(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_the_superexec_loop_takes_an_executor_of_ours() -> None:
    from flwr.supercore.superexec import run_superexec as module
    from flwr.supercore.superexec.executor import Executor

    from fedpeft.engines.deploy.executor import ForkingExecutor

    asked = {name for name in vars(Executor) if not name.startswith("_")}
    assert asked <= set(dir(ForkingExecutor))
    assert parameters(module.run_superexec) >= {"runtime_api_address", "insecure", "superexec_auth_secret"}
    source = inspect.getsource(module.run_superexec)
    for call in (
        "get_executor(",
        "register_signal_handlers(",
        "make_simple_http_retry_invoker()",
        "executor.reconcile",
    ):
        assert call in source
    assert module._TASK_POLL_INTERVAL_ENV == "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
    assert module.make_simple_http_retry_invoker().max_tries is None


def test_a_task_is_answered_by_names_that_can_be_replaced() -> None:
    from flwr.supernode.runtime import run_clientapp as module

    source = inspect.getsource(module.run_clientapp)
    for call in ("install_from_fab(fab.content", "get_load_client_app_fn(", "RuntimeHttpClient.from_server_address("):
        assert call in source
    assert "push_message(client, reply_message, context)" in source
    assert "    flwr_exit(\n        code=exit_code,\n" in source and "        exit_handlers=[on_exit],\n" in source
    assert "register_signal_handlers(\n" in source
    assert list(inspect.signature(module.push_message).parameters) == ["client", "message", "context"]
    assert "PullMessages" in vars(module.RuntimeHttpClient)


def test_flowers_way_out_would_kill_a_process_that_stays() -> None:
    """That is why a process that stays goes another one; here is what of Flower's it must do."""
    from flwr.supercore.exit import exit as module
    from flwr.supercore.exit import exit_handler

    source = inspect.getsource(module.flwr_exit)
    assert "os._exit(sys_exit_code)" in source and "threading.Thread(target=force_exit" in source
    assert source.count("trigger_exit_handlers(run_before_force_exit=") == 2
    assert "not 0 <= code < 100" in source
    assert {"exit_handler"} <= parameters(exit_handler.add_exit_handler)


def test_an_idle_supernode_sleeps_for_as_long_as_we_replace() -> None:
    from flwr.supernode import fleet_http_connection, start_client_internal

    source = inspect.getsource(start_client_internal)
    assert source.count(f"time.sleep({flower_private_node.IDLE_S})") == 1
    assert set(re.findall(r"\btime\.(\w+)", source)) == {"sleep"}, "the module's other uses of time would break"
    assert "run_id = _pull_and_store_message(\n" in source and "with _init_connection(" in source
    connection = inspect.getsource(fleet_http_connection)
    assert "make_simple_http_retry_invoker()" in connection and "flwr_exit(" in connection
    invoker = fleet_http_connection.make_simple_http_retry_invoker()
    assert all((invoker.on_backoff, invoker.on_success, invoker.should_giveup))


def test_a_server_apps_grid_is_asked_as_it_asks_itself() -> None:
    from flwr.superlink.grid import HttpGrid

    source = inspect.getsource(HttpGrid)
    # Looked up on the client each time, where another one can be put in its place for a while.
    assert "push_object_protobuf=self._runtime_client.PushObject," in source
    for call in ("_runtime_client.PullMessages(", "_runtime_client.ConfirmMessageReceived("):
        assert call in source
    assert "self.node = Node(node_id=SUPERLINK_NODE_ID)" in source


def test_a_superlinks_database_waits_by_a_name_that_can_be_replaced() -> None:
    from flwr.supercore import sql_mixin

    assert dict(sql_mixin.SQLITE_PRAGMAS)["busy_timeout"] == "5000"
    assert "in SQLITE_PRAGMAS" in inspect.getsource(sql_mixin._set_sqlite_pragmas)


def test_arrays_are_cut_by_a_name_that_can_be_replaced() -> None:
    from flwr.app.message import array
    from flwr.supernode import fleet_http_client

    assert inspect.getsource(array.Array.slice_array).count("FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE") == 2
    assert "timeout=HEARTBEAT_CALL_TIMEOUT" in inspect.getsource(fleet_http_client.FleetHttpClient.SendNodeHeartbeat)


def test_only_messages_for_a_client_app_are_taken() -> None:
    from flwr.supercore.constant import TaskType

    assert flower_private_device.client_tasks() == {TaskType.CLIENT_APP}


def test_the_control_api_is_asked_without_an_account() -> None:
    from flwr.common.constant import HEARTBEAT_PATIENCE
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.supercore.constant import NodeStatus
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.error import ApiErrorCode, FlowerError

    messages = flower_private.control_messages()
    for name in ("ListNodes", "RegisterNode", "UnregisterNode"):
        assert name in vars(ControlHttpClient) and hasattr(messages, f"{name}Request")
    fields = {"node_id", "owner_name", "status", "online_until", "heartbeat_interval", "public_key", "name"}
    assert fields <= set(NodeInfo.DESCRIPTOR.fields_by_name)
    assert {"public_key", "name"} <= set(messages.RegisterNodeRequest.DESCRIPTOR.fields_by_name)
    assert (flower_private.ONLINE, flower_private.UNREGISTERED) == (NodeStatus.ONLINE, NodeStatus.UNREGISTERED)
    assert flower_private.KEY_IN_USE == ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE
    assert flower_private.NODE_NOT_FOUND == ApiErrorCode.NODE_NOT_FOUND
    assert flower_private.HEARTBEATS_MISSED == HEARTBEAT_PATIENCE
    refusal = json.dumps(FlowerError(23, "for the log").to_json("in use"))
    assert flower_private.api_error(refusal) == (23, "in use")
    assert flower_private.api_error("<html>") is None


def test_a_server_looks_a_key_up_before_it_looks_at_the_interval() -> None:
    from flwr.superlink.servicer.fleet import fleet_handlers
    from flwr.supernode import fleet_http_connection

    source = inspect.getsource(fleet_handlers.activate_node)
    assert 0 < source.index("if node_id is None") < source.index("_validate_heartbeat_interval(")
    with pytest.raises(fleet_handlers.InvalidHeartbeatIntervalError):
        fleet_handlers._validate_heartbeat_interval(0)
    assert "with FleetHttpClient.from_server_address(" in inspect.getsource(fleet_http_connection)


def test_a_superlink_takes_a_middleware_from_its_extensions() -> None:
    """``run_superlink`` puts the door there: without it anybody who reaches the port could start runs."""
    import inspect

    from flwr.superlink import extensions, main

    assert callable(extensions.get_middleware)
    assert "*extensions.get_middleware()" in inspect.getsource(main)
