// usage: node token.mjs KEY.pem CLIENT TOKEN_ENDPOINT SCOPES : signs in as a SMART backend service would and prints the access token.
import fs from 'node:fs';
import { importPKCS8, SignJWT } from 'jose';

const [file, client, endpoint, scope] = process.argv.slice(2);
const alg = process.env.ALG ?? 'RS384';
const assertion = await new SignJWT({})
  .setProtectedHeader({ alg, kid: 'client-1', typ: 'JWT' })
  .setIssuer(client).setSubject(client).setAudience(endpoint).setExpirationTime('4m').setJti(crypto.randomUUID())
  .sign(await importPKCS8(fs.readFileSync(file, 'utf8'), alg));
const answer = await fetch(endpoint, {
  method: 'POST',
  body: new URLSearchParams({
    grant_type: 'client_credentials', scope, client_assertion: assertion,
    client_assertion_type: 'urn:ietf:params:oauth:client-assertion-type:jwt-bearer',
  }),
});
const said = await answer.json();
if (!said.access_token) throw new Error(`${answer.status} ${said.error}`);
console.log(said.access_token);
