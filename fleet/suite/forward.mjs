// Puts a bearer token before a server, for a conformance suite that knows of none. Everything else passes as it is.
//
//   node forward.mjs PORT SERVER_PORT   with the token in FORWARD_TOKEN
import http from 'node:http';

const [port, server] = process.argv.slice(2).map(Number);
http
  .createServer((request, response) => {
    const headers = { ...request.headers, authorization: `Bearer ${process.env.FORWARD_TOKEN}` };
    const options = { host: '127.0.0.1', port: server, method: request.method, path: request.url, headers };
    const onward = http.request(options, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    });
    onward.on('error', () => response.destroy());
    request.pipe(onward);
  })
  .listen(port, '127.0.0.1', () => console.log('listening'));
