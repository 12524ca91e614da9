import pytest

import wyd


@pytest.fixture(scope="session", params=wyd.modes(), ids=lambda mode: mode.name)
def mode(request):
    return request.param


@pytest.fixture(scope="session")
def gateway(mode):
    gateway = wyd.Gateway(mode)
    yield gateway
    gateway.stop()


@pytest.fixture(scope="session")
def replicas():
    """Two gateways that share a broker."""
    shared = [mode for mode in wyd.modes() if mode.broker == "redis"]
    if not shared:
        pytest.skip("WYD_TEST_REDIS_URL is not set")
    gateways = [wyd.Gateway(shared[0]), wyd.Gateway(shared[0])]
    yield gateways
    for gateway in gateways:
        gateway.stop()


@pytest.fixture
async def connected():
    """Connects clients, and disconnects them when the test ends."""
    clients = []

    async def connect(place, user, **options):
        made = wyd.client(place, user, **options)
        clients.append(made)
        await made.connect()
        await made.ready()
        return made

    yield connect
    for made in clients:
        await made.disconnect()
