// usage: node server.mjs PORT CLIENT FOLDER FHIR_BASE SCOPES : an OAuth 2 server (oidc-provider) for SMART Backend Services on 127.0.0.1.
// It makes the key of its one client first: FOLDER/client.pem (PKCS 8) and FOLDER/client.jwk (with its kid), both of mode 600.
// TTL: seconds a token is good for (300); ALG: how the client signs (RS384 or ES384).
import fs from 'node:fs';
import path from 'node:path';
import * as oidc from 'oidc-provider';
import { exportJWK, exportPKCS8, generateKeyPair } from 'jose';

const Provider = oidc.Provider ?? oidc.default;
const [port, client, folder, fhirBase, scopes] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;
const alg = process.env.ALG ?? 'RS384';

const { privateKey, publicKey } = await generateKeyPair(alg, { modulusLength: 3072, extractable: true });
fs.writeFileSync(path.join(folder, 'client.pem'), await exportPKCS8(privateKey), { mode: 0o600 });
const named = { kid: 'client-1', use: 'sig', alg };
const jwk = { ...(await exportJWK(publicKey)), ...named };
fs.writeFileSync(path.join(folder, 'client.jwk'), JSON.stringify({ ...(await exportJWK(privateKey)), ...named }), { mode: 0o600 });
const signing = { ...(await exportJWK((await generateKeyPair('RS256', { extractable: true })).privateKey)), alg: 'RS256', kid: 'server-1', use: 'sig' };

const provider = new Provider(issuer, {
  clients: [{
    client_id: client, token_endpoint_auth_method: 'private_key_jwt', token_endpoint_auth_signing_alg: alg,
    grant_types: ['client_credentials'], redirect_uris: [], response_types: [], jwks: { keys: [jwk] }, scope: scopes,
  }],
  jwks: { keys: [signing] },
  scopes: scopes.split(' '),
  enabledJWA: { clientAuthSigningAlgValues: ['RS384', 'ES384'] },
  clientAuthMethods: ['private_key_jwt', 'none'],
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => fhirBase,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        scope: scopes, audience: fhirBase, accessTokenFormat: 'jwt',
        accessTokenTTL: Number(process.env.TTL ?? 300), jwt: { sign: { alg: 'RS256' } },
      }),
    },
  },
});
provider.on('grant.success', () => console.log('GRANTED'));
provider.on('grant.error', (ctx, e) => console.log('REFUSED', e.error, e.error_detail));
provider.on('server_error', (ctx, e) => console.log('FAILED', e));
provider.listen(Number(port), '127.0.0.1', () => console.log('READY', issuer));
