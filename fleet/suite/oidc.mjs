// An OpenID provider that nobody here wrote (npm oidc-provider), for operators that are programs and for people.
//
//   node oidc.mjs NODE_MODULES PORT RESOURCE CALLBACK
//
// Programs are clients of their own: operator, senior, visitor; the secret of each is its name and "-secret". People (ada,
// grace, mallory) sign in by the provider's own pages, which take any password, for the clients `console` and `brief`, which have no
// secret, come back to CALLBACK, and must use PKCE; or for a client that registers itself. Tokens for RESOURCE are JWTs; those for `brief` live 3 s.
import { pathToFileURL } from 'node:url';

const [modules, port, resource, callback] = process.argv.slice(2);
const { default: Provider } = await import(pathToFileURL(`${modules}/oidc-provider/lib/index.js`));
const programs = { operator: ['operators'], senior: ['operators', 'senior_operator'], visitor: ['visitors'] };
const people = { ada: ['operators'], grace: ['operators', 'senior_operator'], mallory: ['visitors'] };
const scope = 'iot/read iot/command';

const program = (name) => ({
  client_id: name,
  client_secret: `${name}-secret`,
  grant_types: ['client_credentials'],
  redirect_uris: [],
  response_types: [],
  scope,
});
const client = (name) => ({
  client_id: name,
  application_type: 'native',
  token_endpoint_auth_method: 'none',
  grant_types: ['authorization_code', 'refresh_token'],
  redirect_uris: [callback],
  response_types: ['code'],
  scope: `openid offline_access ${scope}`,
});

const provider = new Provider(`http://127.0.0.1:${port}`, {
  clients: [...Object.keys(programs).map(program), client('console'), client('brief')],
  scopes: ['openid', 'offline_access', ...scope.split(' ')],
  cookies: { keys: ['for a test on one machine'] },
  findAccount: (_context, name) => people[name] && { accountId: name, claims: () => ({ sub: name, username: name, groups: people[name] }) },
  features: {
    devInteractions: { enabled: true },
    clientCredentials: { enabled: true },
    registration: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => resource,
      useGrantedResource: () => true,
      getResourceServerInfo: (_context, audience, { clientId }) => ({
        scope,
        audience,
        accessTokenFormat: 'jwt',
        accessTokenTTL: clientId === 'brief' ? 3 : 600,
        jwt: { sign: { alg: 'RS256' } },
      }),
    },
  },
  pkce: { required: ({ clientId }) => !programs[clientId] },
  extraTokenClaims: (_context, token) =>
    token.accountId ? { username: `${token.accountId}@plant`, groups: people[token.accountId] } : { groups: programs[token.clientId] },
});
provider.on('server_error', (_context, error) => console.error(error));
provider.listen(Number(port), '127.0.0.1', () => console.log('listening'));
