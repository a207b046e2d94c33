"""A person who signs in: a browser that fills forms, and the authorization code flow with PKCE by hand.

Nothing here knows an address of the provider's: all of them come from what the server says to a request without a token.
"""

import base64
import hashlib
import html.parser
import http.cookiejar
import json
import secrets
import urllib.error
import urllib.parse
import urllib.request


class Form(html.parser.HTMLParser):
    """The last form of a page."""

    def __init__(self, page):
        super().__init__()
        self.action, self.fields = None, {}
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "form":
            self.action, self.fields = given.get("action"), {}
        if tag == "input" and given.get("name"):
            self.fields[given["name"]] = given.get("value") or ""


class Stays(urllib.request.HTTPRedirectHandler):
    """Redirects are followed by hand: the last one leads to the client, where nobody listens."""

    def redirect_request(self, *_):
        return None


class Browser:
    """A person's browser, with cookies. It signs in as `name` and says yes to what it is asked."""

    def __init__(self, name):
        self.name, self.pages, self.asked = name, [], []
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self.opener = urllib.request.build_opener(cookies, Stays())

    def go(self, address, callback):
        """From the authorization endpoint to the client's address; answers what the provider tells the client there."""
        self.asked.append(dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(address).query)))
        form = None
        for _ in range(20):
            try:
                with self.opener.open(address, form) as answer:
                    page = Form(answer.read().decode())
            except urllib.error.HTTPError as error:
                if error.code not in (302, 303):
                    raise SystemExit(f"{address} answers {error.code}: {error.read().decode()[:1000]}") from error
                address, form = urllib.parse.urljoin(address, error.headers["location"]), None
                if address.startswith(callback):
                    return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(address).query))
                continue
            self.pages.append(page.fields.get("prompt"))
            known = {"login": self.name, "password": "as they say here"}
            filled = {name: known.get(name, value) for name, value in page.fields.items()}
            address, form = urllib.parse.urljoin(address, page.action), urllib.parse.urlencode(filled).encode()
        raise SystemExit(f"{self.name} does not get to {callback}: {self.pages}")


def get(address):
    with urllib.request.urlopen(address) as answer:
        return json.load(answer)


def discovered(url):
    """What the server's refusal leads to: its own document, and its issuer's."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, b"{}"))
    except urllib.error.HTTPError as error:
        said = error.headers.get("www-authenticate", "")
    address = said.split('resource_metadata="')[1].split('"')[0]
    resource = get(address)
    return resource, get(f"{resource['authorization_servers'][0]}/.well-known/openid-configuration")


def tokens(url, name, client, callback, scope, resource=None):
    """What the provider gives a client for this person. The client has no secret; PKCE stands for one."""
    server, provider = discovered(url)
    verifier, state = secrets.token_urlsafe(48), secrets.token_urlsafe(16)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    resource = resource or server["resource"]
    ask = {
        "response_type": "code", "client_id": client, "redirect_uri": callback, "scope": scope, "state": state,
        "resource": resource, "code_challenge": challenge, "code_challenge_method": "S256",
    }
    told = Browser(name).go(f"{provider['authorization_endpoint']}?{urllib.parse.urlencode(ask)}", callback)
    if told.get("state") != state or told.get("iss") != provider["issuer"]:
        raise SystemExit(f"an answer to another question: {told}")
    form = {
        "grant_type": "authorization_code", "code": told["code"], "redirect_uri": callback, "client_id": client,
        "code_verifier": verifier, "resource": resource,
    }
    with urllib.request.urlopen(provider["token_endpoint"], urllib.parse.urlencode(form).encode()) as answer:
        return json.load(answer)
