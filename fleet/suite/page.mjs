// A web page in a browser's place (npm jsdom), which asks before it sends and hides from its page what it may not read.
//
//   node page.mjs NODE_MODULES URL ORIGIN   with a token in PAGE_TOKEN
//
// Prints what the page at ORIGIN gets, as JSON: status 0 is a request that its browser did not let through.
import { pathToFileURL } from 'node:url';

const [modules, url, origin] = process.argv.slice(2);
const { JSDOM, VirtualConsole } = await import(pathToFileURL(`${modules}/jsdom/lib/api.js`));
const { window } = new JSDOM('', { url: `${origin}/`, virtualConsole: new VirtualConsole() });
const call = JSON.stringify({ jsonrpc: '2.0', id: 1, method: 'tools/call', params: { name: 'list_devices', arguments: {} } });

const ask = (method, address, headers, body) =>
  new Promise((resolve) => {
    const request = new window.XMLHttpRequest();
    request.open(method, address);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.onloadend = () =>
      resolve({ status: request.status, text: request.responseText, challenge: request.getResponseHeader('www-authenticate') });
    request.send(body);
  });

const mcp = { 'content-type': 'application/json', accept: 'application/json, text/event-stream', 'mcp-protocol-version': '2025-11-25' };
const refused = await ask('POST', url, mcp, call);
const address = /resource_metadata="([^"]+)"/.exec(refused.challenge ?? '')?.[1];
const told = {
  refused,
  metadata: address && (await ask('GET', address, {})),
  answered: await ask('POST', url, { ...mcp, authorization: `Bearer ${process.env.PAGE_TOKEN}` }, call),
};
console.log(JSON.stringify(told));
window.close();
