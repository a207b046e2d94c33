// An OpenID provider that nobody here wrote (npm oidc-provider), for operators that are clients of their own.
//
//   node oidc.mjs NODE_MODULES PORT RESOURCE
//
// Three clients: operator, senior, visitor; the secret of each is its name and "-secret". Tokens for RESOURCE are JWTs.
import { pathToFileURL } from 'node:url';

const [modules, port, resource] = process.argv.slice(2);
const { default: Provider } = await import(pathToFileURL(`${modules}/oidc-provider/lib/index.js`));
const groups = { operator: ['operators'], senior: ['operators', 'senior_operator'], visitor: ['visitors'] };
const scope = 'iot/read iot/command';

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: Object.keys(groups).map((name) => ({
    client_id: name,
    client_secret: `${name}-secret`,
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
    scope,
  })),
  scopes: scope.split(' '),
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => resource,
      useGrantedResource: () => true,
      getResourceServerInfo: (_context, audience) => ({
        scope,
        audience,
        accessTokenFormat: 'jwt',
        accessTokenTTL: 600,
        jwt: { sign: { alg: 'RS256' } },
      }),
    },
  },
  extraTokenClaims: (_context, token) => ({ groups: groups[token.clientId] }),
});
provider.listen(Number(port), '127.0.0.1', () => console.log('listening'));
