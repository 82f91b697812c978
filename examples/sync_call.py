"""A synchronous call: a price needs today's rate now, or the last known one if the bank is away."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from duly import App
from duly.calls import Breaker, Fallback, Http, Retry
from duly.errors import PeerUnavailableError

app = App("prices")


class Bank(BaseHTTPRequestHandler):
    """Stands for somebody's API; busy at first."""

    answers = [503, 200]

    def do_GET(self):
        self.send_response(self.answers.pop(0))
        self.end_headers()
        self.wfile.write(b"1.08")

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Bank)
threading.Thread(target=server.serve_forever, daemon=True).start()
bank = Http(f"http://127.0.0.1:{server.server_port}")


@app.call(
    deadline="2s",
    retry=Retry(attempts=3, base="50ms", on=(PeerUnavailableError,)),
    breaker=Breaker(failures=5, open_for="30s"),
)
def rate(currency: str) -> float:
    return bank.request_sync("GET", f"/rates/{currency}").json(float)


print("now:", rate("USD"))
server.shutdown()
server.server_close()
print("away:", rate.using(on_failure=Fallback(1.05))("USD"))
bank.close()
